"""Models: transform, encoder and decoder, assembled by ``build_model``."""

from openrec.modeling.base_recognizer import BaseRecognizer, build_model

__all__ = ["BaseRecognizer", "build_model"]
