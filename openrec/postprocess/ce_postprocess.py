"""One character per prediction, without special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from openrec.postprocess.base import LabelDecoder, Pair, to_numpy


class CELabelDecode(LabelDecoder):
    """Whole-image classes ``[B, N]`` or positions ``[B, T, N]`` -> texts."""

    kind = "ce"

    def kept(self, ids: np.ndarray) -> np.ndarray:
        return np.ones_like(ids, dtype=bool)

    def labels(self, batch: Sequence[Any]) -> list[Pair]:
        ids = to_numpy(batch[1])
        return [("".join(self.tokens[row[(row >= 0) & (row < len(self.tokens))]]), 1.0) for row in ids]
