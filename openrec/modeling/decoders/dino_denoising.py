"""Contrastive denoising: queries that start from disturbed true boxes and labels, in training only.

Zhang et al., "DINO" (ICLR 2023): of every character there is a slightly moved copy, which is to be put right, and one
moved farther, which is to be rejected. Several groups do so at once; none may see another, and the queries that read
may see none of them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from openrec.modeling.decoders.detr_coords import box_corners


class Noisy(NamedTuple):
    """P = 2 * groups * longest denoising queries: per group the moved copies, then the ones to reject."""

    labels: Tensor  # [B, P], disturbed; n (the number of classes) in empty slots
    boxes: Tensor  # [B, P, 4], disturbed; 0.5 in empty slots
    slots: Tensor  # [P]: character of the text that the query belongs to
    positive: Tensor  # [B, P], True where the true character is to be found
    filled: Tensor  # [B, P], False in empty slots
    groups: int


def noisy_queries(
    labels: Tensor,
    length: Tensor,
    boxes: Tensor,
    has_box: Tensor,
    *,
    classes: int,
    number: int,
    label_noise: float,
    box_noise: float,
) -> Noisy | None:
    """Draw them, or ``None`` where there is nothing to draw from.

    Args:
        labels, length, boxes, has_box: as of ``CharDetLabelEncode``.
        classes: n. number: queries wanted; there is at least one group.
        label_noise: a label is replaced by any class with half this probability.
        box_noise: corners move by up to this share of half the box; of the ones to reject, by one to two times that.
    """
    length = length * has_box.to(length.dtype)
    longest = int(length.max()) if length.numel() else 0
    if longest == 0 or number < 1:
        return None
    b, groups, device = labels.shape[0], max(1, number // longest), labels.device
    shape = (b, groups, 2, longest)
    filled = (torch.arange(longest, device=device) < length[:, None])[:, None, None].expand(shape)
    positive = filled & torch.tensor([True, False], device=device).view(1, 1, 2, 1)
    ids = labels[:, None, None, :longest].expand(shape)
    flip = torch.rand(shape, device=device) < 0.5 * label_noise
    ids = torch.where(flip, torch.randint(classes, shape, device=device), ids).masked_fill(~filled, classes)
    true = boxes[:, None, None, :longest].float().expand(*shape, 4)
    share = torch.rand(*shape, 4, device=device) + torch.tensor([0.0, 1.0], device=device).view(1, 1, 2, 1, 1)
    sign = torch.randint(2, (*shape, 4), device=device) * 2 - 1
    half = (true[..., 2:] / 2).repeat(1, 1, 1, 1, 2)
    corners = (box_corners(true) + sign * share * half * box_noise).clamp(0, 1)
    low = torch.minimum(corners[..., :2], corners[..., 2:])
    high = torch.maximum(corners[..., :2], corners[..., 2:])
    moved = torch.cat(((low + high) / 2, high - low), -1).masked_fill(~filled.unsqueeze(-1), 0.5)
    slots = torch.arange(longest, device=device).repeat(2 * groups)
    return Noisy(ids.flatten(1), moved.flatten(1, 3), slots, positive.flatten(1), filled.flatten(1), groups)


def denoising_mask(noisy: int, groups: int, queries: int, device: torch.device) -> Tensor:
    """``[noisy + queries] * 2``, True where a row may not see a column; the reading queries come last."""
    group = torch.arange(noisy, device=device) // max(1, noisy // groups)
    mask = torch.zeros(noisy + queries, noisy + queries, dtype=torch.bool, device=device)
    mask[noisy:, :noisy] = True
    mask[:noisy, :noisy] = group[:, None] != group[None]
    return mask
