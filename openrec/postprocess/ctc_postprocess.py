"""Greedy CTC decoding: best class of each frame, repetitions merged, blanks dropped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from openrec.postprocess.base import Decoded, LabelDecoder, Pair, to_numpy

_LATIN_RUN = re.compile(r"[A-Za-z0-9 :*./%+-]+")


class CTCLabelDecode(LabelDecoder):
    """Frames ``[B, T, N + 1]`` -> texts. An Arabic dictionary reverses all but runs of Latin characters."""

    kind = "ctc"

    def kept(self, ids: np.ndarray) -> np.ndarray:
        keep = ids != 0
        keep[:, 1:] &= ids[:, 1:] != ids[:, :-1]
        return keep

    def item(self, characters: list[str], score: float, char_scores: list[float], positions: list[int]) -> Decoded:
        item = super().item(characters, score, char_scores, positions)
        return item._replace(text=reverse_runs(item.text)) if self.charset.is_arabic else item

    def labels(self, batch: Sequence[Any]) -> list[Pair]:
        texts = ["".join(self.tokens[row[row != 0]].tolist()) for row in to_numpy(batch[1])]
        return [(reverse_runs(text) if self.charset.is_arabic else text, 1.0) for text in texts]


def reverse_runs(text: str) -> str:
    """The text from right to left, with each run of Latin characters, digits and their signs kept as it is."""
    parts, end = [], 0
    for run in _LATIN_RUN.finditer(text):
        parts += [*text[end : run.start()], run.group()]
        end = run.end()
    return "".join([*parts, *text[end:]][::-1])
