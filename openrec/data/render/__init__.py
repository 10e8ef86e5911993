"""Rendering of synthetic words on Pillow, OpenCV and NumPy."""

from openrec.data.render.renderer import RenderedWord, WordRenderer

__all__ = ["RenderedWord", "WordRenderer"]
