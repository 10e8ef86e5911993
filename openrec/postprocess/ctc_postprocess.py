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
        if not self.charset.is_arabic:
            return super().item(characters, score, char_scores, positions)
        order = reading_order("".join(c[:1] for c in characters))  # scores and positions move with their characters
        return super().item(
            [characters[i] for i in order], score, [char_scores[i] for i in order], [positions[i] for i in order]
        )

    def labels(self, batch: Sequence[Any]) -> list[Pair]:
        texts = ["".join(self.tokens[row[row != 0]].tolist()) for row in to_numpy(batch[1])]
        return [(reverse_runs(text) if self.charset.is_arabic else text, 1.0) for text in texts]


def reading_order(text: str) -> list[int]:
    """Positions from right to left, with each run of Latin characters, digits and their signs kept as it is."""
    parts: list[range] = []
    end = 0
    for run in _LATIN_RUN.finditer(text):
        parts += [*(range(i, i + 1) for i in range(end, run.start())), range(run.start(), run.end())]
        end = run.end()
    parts += [range(i, i + 1) for i in range(end, len(text))]
    return [i for part in reversed(parts) for i in part]


def reverse_runs(text: str) -> str:
    """The text in ``reading_order``."""
    return "".join(text[i] for i in reading_order(text))
