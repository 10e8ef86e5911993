"""Coordinates of the detection transformers: sine codes of positions and boxes, proposals, boxes that move.

Sources: sine codes are Carion et al., "DETR" (ECCV 2020), and DAB-DETR for boxes; proposals and box refinement are
Zhu et al., "Deformable DETR" (ICLR 2021). The forms are those of detrex (IDEA-Research/detrex, Apache-2.0) and DTLR.
Boxes are (cx, cy, w, h) in [0, 1] of the image; everything here stays float32 at least, also under autocast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from openrec.ops._checks import full_precision

INSIDE = (0.01, 0.99)  # a proposal beyond is not used


def inverse_sigmoid(x: Tensor, eps: float = 1e-3) -> Tensor:
    """Logit of ``x`` in [0, 1], with both ``x`` and ``1 - x`` at least ``eps``: finite in every precision."""
    return torch.log(x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0))


def box_refine(delta: Tensor, reference: Tensor, eps: float = 1e-3) -> Tensor:
    """``reference`` moved by ``delta`` in logit space; both ``[..., 4]``."""
    dtype = torch.promote_types(delta.dtype, torch.float32)
    return (delta.to(dtype) + inverse_sigmoid(reference.to(dtype), eps)).sigmoid()


def _sine(position: Tensor, features: int, temperature: float) -> Tensor:
    """``[...] -> [..., features]``: sine and cosine in turn, of falling frequency."""
    index = torch.arange(features, dtype=position.dtype, device=position.device)
    angle = position.unsqueeze(-1) / temperature ** (2 * (index // 2) / features)
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), -1).flatten(-2)


def get_sine_pos_embed(
    pos_tensor: Tensor, num_pos_feats: int = 128, temperature: float = 10000, exchange_xy: bool = True
) -> Tensor:
    """Codes of normalised coordinates ``[..., n] -> [..., n * num_pos_feats]``; ``exchange_xy``: y before x."""
    with full_precision(pos_tensor.device):
        pos = pos_tensor.to(torch.promote_types(pos_tensor.dtype, torch.float32)) * (2 * math.pi)
        if exchange_xy and pos.shape[-1] > 1:
            pos = torch.cat((pos[..., 1:2], pos[..., 0:1], pos[..., 2:]), -1)
        return _sine(pos, num_pos_feats, temperature).flatten(-2)


def gen_sineembed_for_position(pos_tensor: Tensor) -> Tensor:
    """DTLR's code of points or boxes: 128 features per coordinate, order y, x, w, h."""
    return get_sine_pos_embed(pos_tensor, 128, 10000, exchange_xy=True)


class PositionEmbeddingSine:
    """Sine code of a map's cells, ``mask [B, H, W] -> [B, 2 * num_pos_feats, H, W]``, y before x.

    Args:
        num_pos_feats: features per axis.
        temperature: of both axes; ``temperature_w``: of x, where it differs.
        normalize: count cells in parts of ``scale`` (None: 2 pi) instead of one by one; ``offset`` is added to the
            number first.

    ``mask`` is True on padding. Cells count from 1.
    """

    def __init__(
        self,
        num_pos_feats: int = 64,
        temperature: float = 10000,
        scale: float | None = None,
        eps: float = 1e-6,
        offset: float = 0.0,
        normalize: bool = False,
        temperature_w: float | None = None,
    ):
        self.features, self.normalize = num_pos_feats, normalize
        self.temperatures = (temperature, temperature if temperature_w is None else temperature_w)
        self.scale, self.eps, self.offset = 2 * math.pi if scale is None else scale, eps, offset

    def __call__(self, mask: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """``dtype``: of the computation and of the result."""
        seen, codes = (~mask.bool()).to(dtype), []
        for axis, temperature in zip((1, 2), self.temperatures):
            position = seen.cumsum(axis)
            if self.normalize:
                last = position.narrow(axis, position.shape[axis] - 1, 1)
                position = (position + self.offset) / (last + self.eps) * self.scale
            codes.append(_sine(position, self.features, temperature))
        return torch.cat(codes, -1).permute(0, 3, 1, 2)


class PositionEmbeddingSineHW(PositionEmbeddingSine):
    """``PositionEmbeddingSine`` with DTLR's argument names: a temperature for each axis."""

    def __init__(
        self,
        num_pos_feats: int = 64,
        temperatureH: float = 10000,
        temperatureW: float = 10000,
        normalize: bool = False,
        scale: float | None = None,
    ):
        super().__init__(num_pos_feats, temperatureH, scale, normalize=normalize, temperature_w=temperatureW)


def gen_encoder_output_proposals(
    memory: Tensor,
    memory_padding_mask: Tensor | None,
    spatial_shapes: Sequence[tuple[int, int]],
    learnedwh: Tensor | None = None,
    anchor_wh: Sequence[float] = (0.05, 0.05),
    largest: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """A box around every cell of every level.

    Args:
        memory: [B, S, C], the levels one behind the other, row by row.
        memory_padding_mask: [B, S], True on padding.
        spatial_shapes: (H, W) of each level.
        learnedwh: logits of the size on level 0, instead of ``anchor_wh`` (w, h). It doubles from level to level.
        largest: limit of the size.

    Returns:
        memory, zero where there is no proposal, and the boxes' logits [B, S, 4], +inf where a coordinate lies outside
        ``INSIDE`` or the cell is padding.
    """
    b, dtype = memory.shape[0], torch.promote_types(memory.dtype, torch.float32)
    size = memory.new_tensor(anchor_wh, dtype=dtype) if learnedwh is None else learnedwh.to(dtype).sigmoid()
    padding = memory.new_zeros(b, memory.shape[1], dtype=torch.bool)
    padding = padding if memory_padding_mask is None else memory_padding_mask.bool()
    boxes, start = [], 0
    for level, (h, w) in enumerate(spatial_shapes):
        free = ~padding[:, start : start + h * w].view(b, h, w)
        y = (torch.arange(h, device=memory.device, dtype=dtype) + 0.5).view(1, h, 1) / free[:, :, 0].sum(1).view(
            b, 1, 1
        )
        x = (torch.arange(w, device=memory.device, dtype=dtype) + 0.5).view(1, 1, w) / free[:, 0].sum(1).view(b, 1, 1)
        extent = (size * 2.0**level).clamp(max=largest).expand(b, h, w, 2)
        boxes.append(torch.cat((torch.stack((x.expand(b, h, w), y.expand(b, h, w)), -1), extent), -1).flatten(1, 2))
        start += h * w
    box = torch.cat(boxes, 1)
    unused = ~((box > INSIDE[0]) & (box < INSIDE[1])).all(-1, keepdim=True) | padding.unsqueeze(-1)
    logits = torch.log(box / (1 - box)).masked_fill(unused, math.inf)
    return memory.masked_fill(unused, 0.0), logits


def box_corners(boxes: Tensor) -> Tensor:
    """(cx, cy, w, h) -> (left, top, right, bottom)."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1)


def pair_iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union, and its generalised form (Rezatofighi et al., CVPR 2019), of corner boxes that
    broadcast, ``[..., 4]``. Boxes without area count as very small ones."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    iou = inter / (union + 1e-7)
    return iou, iou - (hull - union) / (hull + 1e-7)
