"""Bilinear sampling at given points: the one routine behind the adaptive scan and every deformable attention.

Zero outside the map. Coordinates are computed in float32 (float64 when given) also under autocast: in bfloat16 a
point on a 32-pixel-wide map would move by up to 0.06 pixel.

Idea: bilinear samplers of Jaderberg et al., "Spatial Transformer Networks", and Dai et al., "Deformable
Convolutional Networks". The row sampler's layout (channels of a group contiguous, so that one corner is one row of
a table) makes the forward pass and every gradient an ``embedding_bag``, which PyTorch runs fast on CPU and GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from openrec.ops._checks import check_real, check_shape, compute_dtype, full_precision
from openrec.ops._load import choose
from openrec.ops._native_dcnv3 import call_deform_sample


def deform_sample(value: Tensor, loc: Tensor, weight: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """Sample ``M`` maps per image at ``Q`` queries of ``P`` points each.

    Args:
        value: maps [B, M, c, H, W].
        loc: points [B, M, Q, P, 2] as (x, y) in [0, 1] from corner to corner; pixel ``i`` of ``W`` has its centre
            at ``(i + 0.5) / W``. Points outside, and points that are NaN, read zeros.
        weight: [B, M, Q, P]; the points of a query are then summed with these weights.

    Returns:
        [B, M, c, Q] when weighted, else [B, M, c, Q, P], in the dtype of ``value``.
    """
    if choose("deform_sample", backend, value.device) == "native" and not (backend == "auto" and _few(value, loc)):
        _check(value, loc, weight)
        return call_deform_sample(value, loc, weight)
    return deform_sample_ref(value, loc, weight)


def _few(value: Tensor, loc: Tensor) -> bool:
    """Few points of a large map, as a decoder reads them step by step: the CPU kernel turns the whole map first."""
    if value.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling() or loc.ndim != 5:
        return False
    return 8 * loc.shape[2] * loc.shape[3] <= value.shape[-2:].numel()


def deform_sample_ref(value: Tensor, loc: Tensor, weight: Tensor | None = None) -> Tensor:
    """``deform_sample`` in plain PyTorch: one ``grid_sample``."""
    b, m, c, h, w = _check(value, loc, weight)
    q, p = loc.shape[2:4]
    dtype = compute_dtype(value, loc, weight)
    with full_precision(value.device):
        # A point that is NaN lies outside, like one at infinity: it reads zeros.
        grid = torch.nan_to_num(loc.to(dtype).reshape(b * m, q, p, 2) * 2 - 1, nan=-3.0, posinf=9.0, neginf=-9.0)
        maps = value.to(dtype).reshape(b * m, c, h, w)
        out = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        out = out.view(b, m, c, q, p)
        if weight is not None:
            out = (out * weight.to(dtype).unsqueeze(2)).sum(-1)
    return out.to(value.dtype)


def _check(value: Tensor, loc: Tensor, weight: Tensor | None) -> torch.Size:
    check_real("deform_sample", value=value, loc=loc, weight=weight)
    check_shape("deform_sample", "value", value, (None,) * 5, "[B, M, c, H, W]")
    b, m = value.shape[:2]
    check_shape("deform_sample", "loc", loc, (b, m, None, None, 2), "[B, M, Q, P, 2]")
    q, p = loc.shape[2:4]
    if weight is not None:
        check_shape("deform_sample", "weight", weight, (b, m, q, p), "[B, M, Q, P]")
    return value.shape


class Corners(NamedTuple):
    """What one axis of a bilinear sample needs: two neighbours and how much each counts (zero outside)."""

    low: Tensor  # index of the lower neighbour, clamped into the map
    high: Tensor
    low_inside: Tensor  # 1.0 where the neighbour lies on the map, else 0.0
    high_inside: Tensor
    fraction: Tensor  # distance from the lower neighbour, pixels

    def weights(self) -> tuple[Tensor, Tensor]:
        return (1 - self.fraction) * self.low_inside, self.fraction * self.high_inside


def corners(position: Tensor, size: int, stride: int) -> Corners:
    """Neighbours of ``position`` (pixels, flat tensor) on an axis of ``size`` pixels that lie ``stride`` rows apart."""
    # Far outside all that matters is that both neighbours are outside; clamping keeps the integers small.
    position = torch.nan_to_num(position, nan=-2.0).clamp(-2, size)
    floor = position.floor()
    low, high = floor.clamp(0, size - 1), (floor + 1).clamp(0, size - 1)
    inside_low, inside_high = (low == floor).to(position.dtype), (high == floor + 1).to(position.dtype)
    return Corners(low.int() * stride, high.int() * stride, inside_low, inside_high, position - floor)


class _SampleRows(torch.autograd.Function):
    """out[q] = sum over points p of weight[q, p] * bilinear(table; x[q, p], y[q, p]).

    ``table`` [B*H*W*G, c] holds the rows of ``[B, H, W, G, c]``; ``x``, ``y`` (pixels) and ``weight`` are
    [B, Q, G, P]. Every pass is an ``embedding_bag``: a bag is a query (or, for the gradient of the table, a row),
    its entries are corners. Sorting instead of scattering keeps the gradient the same from run to run.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, x: Tensor, y: Tensor, weight: Tensor | None, size: tuple[int, int]) -> Tensor:
        index, cx, cy = _corner_rows(x, y, size)
        bag = _bilinear(cx.weights(), cy.weights(), weight)
        points = x.shape[-1]
        out = F.embedding_bag(
            index.view(-1, 4 * points), table, mode="sum", per_sample_weights=bag.view(-1, 4 * points)
        )
        ctx.save_for_backward(table, index, bag, weight, cx.fraction, cy.fraction, *cx[2:4], *cy[2:4])
        ctx.shape = x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, index, bag, weight, fx, fy, x_low, x_high, y_low, y_high = ctx.saved_tensors
        grad = grad.contiguous()
        points = ctx.shape[-1]
        d_table = _scatter_rows(grad, index, bag, points, table.shape[0]) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:4]):
            return d_table, None, None, None, None
        if points > 1:  # every point needs its own dot product with the gradient of its query
            grad = grad.repeat_interleave(points, 0)
        wx, wy = ((1 - fx) * x_low, fx * x_high), ((1 - fy) * y_low, fy * y_high)

        def dot(corner_weights: Tensor) -> Tensor:
            sampled = F.embedding_bag(index, table, mode="sum", per_sample_weights=corner_weights)
            return sampled.mul_(grad).sum(-1).view(ctx.shape)

        d_x = dot(_bilinear((-x_low, x_high), wy, weight))
        d_y = dot(_bilinear(wx, (-y_low, y_high), weight))
        d_weight = dot(_bilinear(wx, wy, None)) if weight is not None and ctx.needs_input_grad[3] else None
        return d_table, d_x, d_y, d_weight, None


def _corner_rows(x: Tensor, y: Tensor, size: tuple[int, int]) -> tuple[Tensor, Corners, Corners]:
    """Table rows of the four corners of every point, [B*Q*G*P, 4], and the two axes."""
    b, q, g, p = x.shape
    h, w = size
    cx, cy = corners(x.reshape(b, -1), w, g), corners(y.reshape(b, -1), h, w * g)
    start = torch.arange(b, device=x.device, dtype=torch.int32).view(b, 1) * (h * w * g)
    group = torch.arange(g, device=x.device, dtype=torch.int32).view(1, g, 1).expand(q, g, p).reshape(1, -1)
    top, bottom = cy.low + (start + group), cy.high + (start + group)
    index = torch.empty(b, q * g * p, 4, dtype=torch.int32, device=x.device)
    for k, (row, column) in enumerate(((top, cx.low), (top, cx.high), (bottom, cx.low), (bottom, cx.high))):
        torch.add(row, column, out=index[..., k])
    return index.view(-1, 4), cx, cy


def _bilinear(wx: tuple[Tensor, Tensor], wy: tuple[Tensor, Tensor], weight: Tensor | None) -> Tensor:
    """Products of the axis weights for the four corners, [B*Q*G*P, 4], in the order of ``_corner_rows``."""
    out = wx[0].new_empty(*wx[0].shape, 4)
    for k in range(4):
        torch.mul(wy[k // 2], wx[k % 2], out=out[..., k])
    if weight is not None:
        out *= weight.reshape(*wx[0].shape, 1)
    return out.view(-1, 4)


def _scatter_rows(grad: Tensor, index: Tensor, bag: Tensor, points: int, rows: int) -> Tensor:
    """Gradient of the table: row ``r`` collects ``bag * grad`` of every corner that read it, in a fixed order."""
    index, order = index.view(-1).sort(stable=True)
    starts = torch._convert_indices_from_coo_to_csr(index, rows, out_int32=True)
    query = order.int().div_(4 * points, rounding_mode="floor")
    weights = bag.view(-1).index_select(0, order)
    return F.embedding_bag(query, grad, starts, mode="sum", per_sample_weights=weights, include_last_offset=True)


def sample_rows(value: Tensor, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sample a channels-last map group by group.

    Args:
        value: [B, H, W, C]; group ``g`` owns channels ``g * C/G .. (g + 1) * C/G``.
        x, y: positions in pixels (0 is the first pixel's centre), [B, Ho, Wo, G, P].
        weight: [B, Ho, Wo, G, P] or ``None`` for ones.

    Returns:
        the weighted sum over the points, [B, Ho, Wo, C].
    """
    b, h, w, c = value.shape
    ho, wo, g, p = x.shape[1:]
    flat = (b, ho * wo, g, p)
    table = value.reshape(b * h * w * g, c // g)
    if table.shape[0] >= 2**31:
        raise ValueError(f"sample_rows: {table.shape[0]} rows of {c // g} channels are too many; use a smaller batch")
    weight = None if weight is None else weight.reshape(flat)
    return _SampleRows.apply(table, x.reshape(flat), y.reshape(flat), weight, (h, w)).view(b, ho, wo, c)
