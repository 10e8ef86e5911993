"""From detected characters to texts: kept by their scores and read from left to right, or as CTC reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openrec.charset import Charset
from openrec.errors import ConfigError
from openrec.losses.dino_loss import with_blank
from openrec.postprocess.base import Decoded, LabelDecoder, Pair, to_numpy


class DINOLabelDecode(LabelDecoder):
    """``[B, Q, n + 4]`` of ``DINODecoder`` -> texts; positions are numbers of queries.

    Args:
        score_threshold: least probability of a character that 'nms' reads.
        read: 'nms': queries above ``score_threshold``, of overlapping ones the best; 'ctc': of every query the best of
            the classes and the blank, for a decoder tuned with CTC. Equal neighbours are two characters in either.
        nms_iou: boxes of a higher intersection over union overlap.
        sort: 'x': by the boxes' centres; 'angle': along the principal axis of the centres, left to right, for
            slanted words. Vertical and strongly curved words are read in a wrong order by both.
    """

    kind = "ce"

    def __init__(
        self,
        character_dict_path: str | None = None,
        use_space_char: bool = False,
        charset: Charset | None = None,
        read: str = "nms",
        score_threshold: float = 0.3,
        nms_iou: float = 0.5,
        sort: str = "x",
    ):
        super().__init__(character_dict_path, use_space_char, charset)
        if read not in ("nms", "ctc") or sort not in ("x", "angle"):
            raise ConfigError(f"DINOLabelDecode: expected read nms or ctc, sort x or angle; got {read!r}, {sort!r}.")
        self.read, self.threshold, self.nms_iou, self.sort = read, score_threshold, nms_iou, sort

    def decode_detailed(self, preds: Any) -> list[Decoded]:
        """Text, score, characters' scores and query numbers for every image."""
        return [item for item, _ in self.with_boxes(preds)]

    def with_boxes(self, preds: Any) -> list[tuple[Decoded, np.ndarray]]:
        """The same, each with its characters' boxes ``[characters, 4]``, (cx, cy, w, h) in [0, 1]."""
        ids, scores, boxes, keep = self._detections(preds)
        order = np.argsort(self._along(boxes, keep), axis=1, kind="stable")
        items = []
        for row, queries in enumerate(order):
            queries = queries[keep[row, queries]]
            own = scores[row, queries].tolist()
            score = float(np.mean(own)) if own else 0.0
            item = self.item(self.tokens[ids[row, queries]].tolist(), score, own, queries.tolist())
            items.append((item, boxes[row, queries]))
        return items

    def _detections(self, preds: Any) -> tuple[np.ndarray, ...]:
        p, boxes = _split(preds)
        if self.read == "ctc":
            p = with_blank(p)
            scores, ids = p.max(-1)
            keep, ids = ids > 0, (ids - 1).clamp(min=0)
        else:
            scores, ids = p.max(-1)
            keep = scores > self.threshold
        found = [np.asarray(t.cpu().numpy()) for t in (ids, scores, boxes, keep)]
        if self.read == "nms":
            found[3] = suppress(found[1], found[2], found[3], self.nms_iou)
        return tuple(found)

    def _along(self, boxes: np.ndarray, keep: np.ndarray) -> np.ndarray:
        """Position of every query on the line of reading."""
        if self.sort == "x":
            return boxes[..., 0]
        weight = keep[..., None] / np.maximum(1, keep.sum(1))[:, None, None]
        centred = boxes[..., :2] - (boxes[..., :2] * weight).sum(1, keepdims=True)
        _, axes = np.linalg.eigh(np.einsum("bqi,bqj->bij", centred * weight, centred))
        main = axes[..., -1] * np.where(axes[:, :1, -1] < 0, -1, 1)
        return np.einsum("bqi,bi->bq", centred, main)

    def labels(self, batch: Sequence[Any]) -> list[Pair]:
        return [("".join(self.tokens[row[row >= 0]].tolist()), 1.0) for row in to_numpy(batch[1])]


def _split(preds: Any) -> tuple[Tensor, Tensor]:
    """Probabilities and boxes, float32, of what the decoder gives in evaluation or in training."""
    if isinstance(preds, Mapping):
        return preds["logits"][-1].detach().float().sigmoid(), preds["boxes"][-1].detach().float()
    preds = (preds if isinstance(preds, Tensor) else torch.from_numpy(np.asarray(preds))).detach().float()
    return preds[..., :-4], preds[..., -4:]


def suppress(scores: np.ndarray, boxes: np.ndarray, keep: np.ndarray, limit: float) -> np.ndarray:
    """Greedy non-maximum suppression of all images at once, whatever the classes: which queries stay, ``[B, Q]``."""
    order = np.argsort(-np.where(keep, scores, -1.0), axis=1, kind="stable")
    rows = np.arange(len(order))[:, None]
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    low, high, alive = low[rows, order], high[rows, order], keep[rows, order]
    area = np.prod(high - low, -1)
    for rank in range(int(keep.sum(1).max(initial=0))):
        shared = np.minimum(high[:, rank, None], high) - np.maximum(low[:, rank, None], low)
        inter = np.prod(np.clip(shared, 0, None), -1)
        iou = inter / np.maximum(area[:, rank, None] + area - inter, 1e-9)
        worse = (np.arange(iou.shape[1]) > rank) & (iou > limit) & alive[:, rank, None]
        alive = alive & ~worse
    out = np.zeros_like(keep)
    out[rows, order] = alive
    return out
