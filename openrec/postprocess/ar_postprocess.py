"""Texts of decoders that end with a token of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from openrec.postprocess.base import Decoded, LabelDecoder, Pair, to_numpy


class ARLabelDecode(LabelDecoder):
    """Steps ``[B, T, N + 1]`` -> the characters before the first ``</s>``.

    A call gives an empty text the score NaN, as OpenOCR does; ``decode_detailed`` gives 0.
    """

    kind = "ar"

    def kept(self, ids: np.ndarray) -> np.ndarray:
        end = self.table.special("</s>")
        characters = (ids >= self.table.first) & (ids < self.table.first + len(self.charset))
        return characters & ~np.logical_or.accumulate(ids == end, axis=1)

    def score_of(self, item: Decoded) -> float:
        return item.score if item.text else float("nan")

    def labels(self, batch: Sequence[Any]) -> list[Pair]:
        ids = to_numpy(batch[1])[:, 1:]  # without <s>
        return [("".join(self.tokens[row[keep]].tolist()), 1.0) for row, keep in zip(ids, self.kept(ids))]


class NRTRLabelDecode(ARLabelDecode):
    """``ARLabelDecode`` under the name of ``NRTRDecoder``, whose classes follow that token table.

    OpenOCR's class of this name has a table that fits no decoder.
    """
