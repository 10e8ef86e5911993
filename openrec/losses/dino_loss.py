"""Losses of a recogniser that detects characters: set matching where boxes are known, CTC where they are not.

Matching and its weights: DETR and DINO (Zhang et al., ICLR 2023). CTC over the detections from left to right: DTLR
(Baena et al., NeurIPS 2024). Focal loss: Lin et al., ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.losses.matching import assign
from openrec.modeling.decoders.detr_coords import box_corners, pair_iou

MODES = ("det", "ctc", "joint")
EPSILON = 0.003  # least probability of the blank


def with_blank(probabilities: Tensor, eps: float = EPSILON) -> Tensor:
    """Independent probabilities ``[..., n]`` -> a distribution ``[..., 1 + n]``, the blank first."""
    total = probabilities.sum(-1, keepdim=True)
    room = total < 1 - eps
    blank = torch.where(room, 1 - total, torch.full_like(total, eps))
    shared = probabilities * torch.where(room, torch.ones_like(total), (1 - eps) / total.clamp(min=1e-6))
    return torch.cat((blank, shared), -1)


def reading_steps(logits: Tensor, boxes: Tensor) -> Tensor:
    """Log-probabilities ``[B, 2 Q, 1 + n]``: detections by their cx, a sure blank after each, so that equal
    neighbours stay two. The order has no gradient, so boxes receive none."""
    order = boxes[..., 0].detach().argsort(dim=1, stable=True).unsqueeze(-1).expand_as(logits)
    steps = with_blank(logits.gather(1, order).sigmoid())
    pause = torch.full_like(steps, 1e-5)
    pause[..., 0] = 1.0
    return torch.stack((steps, pause), 2).flatten(1, 2).clamp(min=1e-9).log()


class DINOLoss(nn.Module):
    """Detection loss of every decoder layer, of the proposals and of the denoising queries, or CTC, or both.

    Args:
        mode: 'det': samples with boxes; 'ctc': only the last layer's classes learn, boxes receive no gradient;
            'joint': 'det' on the samples with boxes and 'ctc' on the others.
        cost_class, cost_bbox, cost_giou: of the matching. loss_class, loss_bbox, loss_giou: of the loss.
        det_weight, ctc_weight: in 'joint'.
        alpha, gamma: of the focal loss.
        allow_scratch: with mode 'ctc', train without ``Global.pretrained_model``; random boxes have no order, so that
            such a run is expected to find nothing but blanks.

    Predictions: ``DINODecoder``'s mapping. ``batch``: image, label, length, boxes, has_box. Beside ``loss`` it tells
    ``class_loss``, ``bbox_loss``, ``giou_loss`` of the last layer, ``proposal_loss``, ``dn_loss``, ``ctc_loss``, and
    ``match_kept``: the share of characters that the last layer matches to the same query as the layer before.
    """

    def __init__(
        self,
        mode: str = "det",
        cost_class: float = 2.0,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        loss_class: float = 1.0,
        loss_bbox: float = 5.0,
        loss_giou: float = 2.0,
        det_weight: float = 1.0,
        ctc_weight: float = 0.5,
        alpha: float = 0.25,
        gamma: float = 2.0,
        allow_scratch: bool = False,
    ):
        super().__init__()
        if mode not in MODES:
            raise ConfigError(f"DINOLoss.mode: expected one of {', '.join(MODES)}; got {mode!r}.")
        self.mode, self.alpha, self.gamma, self.allow_scratch = mode, alpha, gamma, allow_scratch
        self.costs, self.weights = (cost_class, cost_bbox, cost_giou), (loss_class, loss_bbox, loss_giou)
        self.det_weight, self.ctc_weight = (det_weight, ctc_weight) if mode == "joint" else (1.0, 1.0)

    def forward(self, predictions: Mapping[str, Any], batch: Sequence[Tensor]) -> dict[str, Tensor]:
        if len(batch) < 5:
            raise ConfigError("DINOLoss: set KeepKeys.keep_keys: [image, label, length, boxes, has_box].")
        labels, length, _, has_box = batch[1:5]
        logits, boxes = _full(predictions["logits"]), _full(predictions["boxes"])
        known = has_box.bool() if self.mode != "ctc" else torch.zeros_like(has_box, dtype=torch.bool)
        # Whoever takes part in the forward pass takes part here, if with no gradient: processes must agree on it.
        loss = 0.0 * (logits.sum() + boxes.sum())
        parts: dict[str, Tensor] = {}
        for extra in ("proposals", "denoising"):
            if extra in predictions:
                loss = loss + 0.0 * (
                    _full(predictions[extra]["logits"]).sum() + _full(predictions[extra]["boxes"]).sum()
                )
        if self.mode != "ctc":
            det, parts = self._detection(predictions, logits, boxes, batch, known)
            loss = loss + self.det_weight * det
        if self.mode != "det":
            parts["ctc_loss"] = self._ctc(logits[-1], boxes[-1], labels, length, ~known)
            loss = loss + self.ctc_weight * parts["ctc_loss"]
        return {"loss": loss, **parts}

    # -- detection -------------------------------------------------------------------------------------

    def _detection(
        self, predictions: Mapping[str, Any], logits: Tensor, boxes: Tensor, batch: Sequence[Tensor], known: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        labels, length, true_boxes = batch[1], batch[2] * known, batch[3].to(boxes.dtype)
        found = predictions.get("proposals")
        if found is not None:  # matched like one more layer
            logits = torch.cat((logits, _full(found["logits"])[None]))
            boxes = torch.cat((boxes, _full(found["boxes"])[None]))
        longest = max(1, int(length.max()))
        labels, true_boxes = labels[:, :longest], true_boxes[:, :longest]
        index = self.match(logits, boxes, labels, true_boxes, length)  # [layers, B, T]
        count = length.sum().clamp(min=1)
        hit = (index >= 0).to(logits.dtype)
        target = torch.zeros_like(logits)
        where = index.clamp(min=0)
        layer, image = torch.meshgrid(*(torch.arange(n, device=index.device) for n in index.shape[:2]), indexing="ij")
        spots = (layer[..., None], image[..., None], where, labels.clamp(min=0).expand_as(where))
        target.index_put_(spots, hit, accumulate=True)
        parts = self._parts(
            logits, target, known[None, :, None], boxes.gather(2, where[..., None].expand(*where.shape, 4)),
            true_boxes[None], hit, count,
        )  # fmt: skip
        total = sum(w * p for w, p in zip(self.weights, parts))
        assert isinstance(total, Tensor)
        last = len(predictions["logits"]) - 1
        told = {f"{k}_loss": p[last] for k, p in zip(("class", "bbox", "giou"), parts)}
        if last:
            told["match_kept"] = ((index[last] == index[last - 1]) * hit[last]).sum() / count
        loss = total.sum()
        if found is not None:
            told["proposal_loss"] = total[-1]
        if "denoising" in predictions:
            told["dn_loss"] = self._denoising(predictions["denoising"], labels, true_boxes, count, known)
            loss = loss + told["dn_loss"]
        return loss, told

    def _parts(
        self, logits: Tensor, target: Tensor, counted: Tensor, boxes: Tensor, true: Tensor, hit: Tensor, count: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Focal, L1 and GIoU loss of every layer ``[layers]``, per true box."""
        p = logits.sigmoid()
        right = p * target + (1 - p) * (1 - target)
        focal = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * (1 - right) ** self.gamma
        focal = (focal * (self.alpha * target + (1 - self.alpha) * (1 - target))).sum(-1) * counted
        distance = (boxes - true).abs().sum(-1) * hit
        giou = (1 - pair_iou(box_corners(boxes), box_corners(true))[1]) * hit
        first, second, third = (x.sum((1, 2)) / count for x in (focal, distance, giou))
        return first, second, third

    def _denoising(
        self, predictions: Mapping[str, Any], labels: Tensor, boxes: Tensor, count: Tensor, known: Tensor
    ) -> Tensor:
        """The same with a fixed assignment: a moved copy answers for its own character."""
        noisy, logits = predictions["noisy"], _full(predictions["logits"])
        positive = noisy.positive & known[:, None]
        own = labels[:, noisy.slots].clamp(min=0)
        target = F.one_hot(own, logits.shape[-1]).to(logits.dtype) * positive.unsqueeze(-1)
        parts = self._parts(
            logits, target.expand_as(logits), (noisy.filled & known[:, None])[None], _full(predictions["boxes"]),
            boxes[:, noisy.slots][None], positive[None].to(logits.dtype), count * noisy.groups,
        )  # fmt: skip
        total = sum(w * p.sum() for w, p in zip(self.weights, parts))
        assert isinstance(total, Tensor)
        return total

    @torch.no_grad()
    def match(self, logits: Tensor, boxes: Tensor, labels: Tensor, true_boxes: Tensor, length: Tensor) -> Tensor:
        """Query of every character ``[layers, B, T]``, -1 where there is none."""
        layers, b = logits.shape[:2]
        index = labels.clamp(min=0)[None, :, None].expand(layers, -1, logits.shape[2], -1)
        p = logits.gather(3, index).sigmoid()  # [layers, B, Q, T]
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        ours, true = boxes.unsqueeze(3), true_boxes[None, :, None]
        distance = (ours - true).abs().sum(-1)
        giou = pair_iou(box_corners(ours), box_corners(true))[1]
        parts = (positive - negative, distance, -giou)
        cost = sum(w * part for w, part in zip(self.costs, parts)).transpose(2, 3).flatten(0, 1)  # type: ignore[union-attr]
        found = assign(cost.cpu().numpy(), np.tile(length.cpu().numpy(), layers))
        return torch.from_numpy(found).view(layers, b, -1).to(logits.device)

    # -- CTC -------------------------------------------------------------------------------------------

    @staticmethod
    def _ctc(logits: Tensor, boxes: Tensor, labels: Tensor, length: Tensor, counted: Tensor) -> Tensor:
        steps = reading_steps(logits, boxes).transpose(0, 1)
        loss = F.ctc_loss(
            steps, labels.clamp(min=0) + 1, length.new_full(length.shape, len(steps)), length,
            reduction="none", zero_infinity=True,
        )  # fmt: skip
        return (loss / length.clamp(min=1) * counted).sum() / counted.sum().clamp(min=1)


def _full(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
