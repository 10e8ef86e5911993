"""dcnv3 and deform_sample as compiled operators: shapes without data, gradients, and the calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openrec.ops._load import native, no_double_backward


def call_dcnv3(input: Tensor, offset: Tensor, mask: Tensor | None, geometry: tuple[list[int], ...], *rest) -> Tensor:
    """``geometry``: kernel size, stride, pad and dilation as pairs; ``rest``: group, offset_scale, remove_center."""
    dtype = _storage(input, offset, mask)
    extra = [None if t is None else _beside(t, dtype) for t in (offset, mask)]
    return torch.ops.openrec.dcnv3_forward(input.to(dtype), *extra, *geometry, *rest).to(input.dtype)


def call_deform_sample(value: Tensor, loc: Tensor, weight: Tensor | None) -> Tensor:
    dtype = _storage(value, loc, weight)
    extra = [None if t is None else _beside(t, dtype) for t in (loc, weight)]
    return torch.ops.openrec.deform_sample_forward(value.to(dtype), *extra).to(value.dtype)


def _storage(main: Tensor, *others: Tensor | None) -> torch.dtype:
    """The map keeps its type, unless float64 coordinates ask for more precision."""
    wide = any(t is not None and t.dtype == torch.float64 for t in others)
    return torch.float64 if wide else main.dtype


def _beside(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Coordinates and weights: as they are in the map's type or float32, anything else in the computing type."""
    if t.dtype == dtype or (t.dtype == torch.float32 and dtype != torch.float64):
        return t
    return t.to(torch.float64 if dtype == torch.float64 else torch.float32)


# ------------------------------------------------------------------------------------------------- shapes and gradients


def _fake_dcnv3(input, offset, mask, kernel_size, stride, pad, dilation, group, offset_scale, remove_center):
    points = kernel_size[0] * kernel_size[1] - int(remove_center)
    torch._check(offset.shape[3] == group * points * 2)
    return input.new_empty((*offset.shape[:3], input.shape[3]))


def _fake_dcnv3_backward(grad, input, offset, mask, *geometry):
    d_mask = input.new_empty(0) if mask is None else mask.new_empty(mask.shape)
    return input.new_empty(input.shape), offset.new_empty(offset.shape), d_mask


def _fake_sample(value, loc, weight):
    b, m, q, p = loc.shape[:4]
    return value.new_empty((b, m, value.shape[2], q) if weight is not None else (b, m, value.shape[2], q, p))


def _fake_sample_backward(grad, value, loc, weight):
    d_weight = value.new_empty(0) if weight is None else weight.new_empty(weight.shape)
    return value.new_empty(value.shape), loc.new_empty(loc.shape), d_weight


def _keep_three(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Save map, points and weights; the numbers behind them describe the geometry."""
    ctx.save_for_backward(*inputs[:3])
    ctx.geometry = inputs[3:]


def _dcnv3_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, offset, mask = ctx.saved_tensors
    d_input, d_offset, d_mask = torch.ops.openrec.dcnv3_backward(grad, input, offset, mask, *ctx.geometry)
    return d_input, d_offset, None if mask is None else d_mask, *(None,) * len(ctx.geometry)


def _sample_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, loc, weight = ctx.saved_tensors
    d_value, d_loc, d_weight = torch.ops.openrec.deform_sample_backward(grad, value, loc, weight)
    return d_value, d_loc, None if weight is None else d_weight


if native.library is not None:
    torch.library.register_fake("openrec::dcnv3_forward", _fake_dcnv3)
    torch.library.register_fake("openrec::dcnv3_backward", _fake_dcnv3_backward)
    torch.library.register_autograd("openrec::dcnv3_forward", _dcnv3_gradient, setup_context=_keep_three)
    torch.library.register_fake("openrec::deform_sample_forward", _fake_sample)
    torch.library.register_fake("openrec::deform_sample_backward", _fake_sample_backward)
    torch.library.register_autograd("openrec::deform_sample_forward", _sample_gradient, setup_context=_keep_three)
    no_double_backward("dcnv3_backward")
    no_double_backward("deform_sample_backward")
