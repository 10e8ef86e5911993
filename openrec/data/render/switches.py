"""Parts of the renderer that can be left out, to measure what each is worth (``benchmarks/renderer_ablation.py``)."""

from __future__ import annotations

from collections.abc import Sequence

from openrec.errors import ConfigError
from openrec.registry import nearest

SWITCHES = {
    "families": "a family is chosen first, then a face of it; without: all faces alike, large families dominate",
    "lengths": "lengths as counted on street words; without: all lengths alike",
    "case": "capitals, small letters and both; without: as the word list has it",
    "numbers": "prices, dates, telephone numbers; without: words and random strings alone",
    "marks": "a mark before or behind a word",
    "neighbours": "a piece of another line in the picture",
    "perspective": "rotation, slant and perspective",
    "curves": "arcs and waves",
    "blur": "unsharp pictures and camera shake",
    "low_resolution": "few pixels, enlarged",
    "noise": "grain of the sensor",
    "jpeg": "strong compression; without: quality 95",
    "light": "uneven light",
    "texture": "textures and gradients behind and in the letters, edges of the sign",
    "decoration": "outlines, shadows, extrusion",
    "low_contrast": "letters hardly darker or lighter than their ground; without: at least 100 of 255 levels",
}


def checked(without: str | Sequence[str] | None) -> frozenset[str]:
    """The switches to leave out.

    Raises:
        ConfigError: an unknown name; tells the nearest.
    """
    names = [without] if isinstance(without, str) else list(without or ())
    for name in names:
        if name not in SWITCHES:
            raise ConfigError(f'without: "{name}" is no part of the renderer.{nearest(str(name), SWITCHES)}')
    return frozenset(names)
