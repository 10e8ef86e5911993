"""The sampling core of multi-scale deformable attention: weighted samples of several maps, summed per query and head.

Idea: Zhu et al., "Deformable DETR" (fundamentalvision/Deformable-DETR, Apache-2.0). Here it is one ``deform_sample``
per level, so every backend of that operator serves it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openrec.ops._checks import check_real, check_shape
from openrec.ops.deform_sample import deform_sample


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    backend: str = "auto",
) -> Tensor:
    """Sum of weighted samples over levels and points.

    Args:
        value: [B, S, heads, c]: the maps of all levels, one behind the other, row by row.
        spatial_shapes: (H, W) of each level.
        sampling_locations: [B, Q, heads, levels, P, 2] as (x, y) in [0, 1] of each map.
        attention_weights: [B, Q, heads, levels, P].

    Returns:
        [B, Q, heads * c] in the dtype of ``value``.
    """
    op = "ms_deform_attn"
    check_real(op, value=value, sampling_locations=sampling_locations, attention_weights=attention_weights)
    check_shape(op, "value", value, (None,) * 4, "[B, S, heads, c]")
    shapes = [(int(h), int(w)) for h, w in spatial_shapes]
    b, total, heads, c = value.shape
    layout = "[B, Q, heads, levels, P, 2]"
    check_shape(op, "sampling_locations", sampling_locations, (b, None, heads, len(shapes), None, 2), layout)
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    expected = (b, queries, heads, len(shapes), points)
    check_shape(op, "attention_weights", attention_weights, expected, "[B, Q, heads, levels, P]")
    sizes = [h * w for h, w in shapes]
    if sum(sizes) != total:
        raise ValueError(f"{op}: spatial_shapes {shapes} cover {sum(sizes)} positions, value holds {total}")
    dtype = torch.promote_types(value.dtype, torch.float32)
    out = None
    for level, ((h, w), part) in enumerate(zip(shapes, value.split(sizes, 1))):
        maps = part.permute(0, 2, 3, 1).reshape(b, heads, c, h, w)
        loc = sampling_locations[:, :, :, level].transpose(1, 2)  # [B, heads, Q, P, 2]
        weight = attention_weights[:, :, :, level].transpose(1, 2)
        sampled = deform_sample(maps, loc, weight, backend=backend).to(dtype)  # [B, heads, c, Q]
        out = sampled if out is None else out + sampled
    if out is None:
        raise ValueError(f"{op}: spatial_shapes must name at least one level")
    return out.permute(0, 3, 1, 2).flatten(2).to(value.dtype)
