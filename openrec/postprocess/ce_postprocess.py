"""One character per prediction, without special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from openrec.postprocess.base import Decoded, LabelDecoder, Pair, best, to_numpy


class CELabelDecode(LabelDecoder):
    """Whole-image classes ``[B, N]`` or positions ``[B, T, N]`` -> texts."""

    kind = "ce"

    def decode_detailed(self, preds: Any) -> list[Decoded]:
        ids, scores = best(preds)
        positions = np.arange(ids[0].size) if len(ids) else np.zeros(0, np.int64)
        return [self.decoded(i.reshape(-1), s.reshape(-1), positions) for i, s in zip(ids, scores)]

    def labels(self, batch: Sequence[Any]) -> list[Pair]:
        ids = to_numpy(batch[1])
        return [("".join(self.tokens[row[(row >= 0) & (row < len(self.tokens))]]), 1.0) for row in ids]
