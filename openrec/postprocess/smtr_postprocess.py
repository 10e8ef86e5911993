"""Texts of the SMTR decoder."""

from __future__ import annotations

from openrec.charset import Charset
from openrec.postprocess.ar_postprocess import ARLabelDecode
from openrec.postprocess.base import Decoded


class SMTRLabelDecode(ARLabelDecode):
    """Steps ``[B, T, N + 2]`` -> texts.

    Args:
        next_mode: False: the decoder read from right to left, so predictions (not labels) are reversed.
    """

    kind = "smtr"

    def __init__(
        self,
        character_dict_path: str | None = None,
        use_space_char: bool = False,
        next_mode: bool = True,
        charset: Charset | None = None,
    ):
        super().__init__(character_dict_path, use_space_char, charset)
        self.next_mode = next_mode

    def item(self, characters: list[str], score: float, char_scores: list[float], positions: list[int]) -> Decoded:
        if not self.next_mode:
            characters, char_scores, positions = characters[::-1], char_scores[::-1], positions[::-1]
        return super().item(characters, score, char_scores, positions)
