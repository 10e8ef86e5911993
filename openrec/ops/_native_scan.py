"""selective_scan as a compiled operator: shapes without data, its gradient, and the layouts it is called in."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from openrec.ops._checks import compute_dtype
from openrec.ops._load import native, no_double_backward


def call_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    last: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Arguments as in the public function, ``[B, D, L]``; channels-last memory behind it is used in place."""
    dtype = compute_dtype(u, delta, A, B, C, D, z, delta_bias)
    A = A.to(dtype)
    D, delta_bias = (None if t is None else t.to(dtype) for t in (D, delta_bias))
    B, C = _grouped(u, B, C)
    out_type = u.dtype
    if u.is_cuda:  # the GPU kernels read one storage type, B and C in any
        common = torch.promote_types(u.dtype, delta.dtype)
        common = common if z is None else torch.promote_types(common, z.dtype)
        if dtype == torch.float64:
            common, B, C = dtype, B.to(dtype), C.to(dtype)
        u, delta, z = u.to(common), delta.to(common), None if z is None else z.to(common)
    channels_last = u.stride(1) == 1 and u.shape[1] > 1
    if channels_last:
        u, delta, z = u.transpose(1, 2), delta.transpose(1, 2), None if z is None else z.transpose(1, 2)
        B, C = B.permute(0, 3, 1, 2), C.permute(0, 3, 1, 2)
    out, state = torch.ops.openrec.selective_scan_forward(
        u, delta, A, B, C, D, z, delta_bias, softplus, reverse, channels_last, last
    )
    return (out.transpose(1, 2) if channels_last else out).to(out_type), state


def call_state(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, delta_bias: Tensor | None, softplus: bool) -> Tensor:
    """The states ``[B, D, N, L]`` as outputs of a scan in which every (state, channel) is a channel with C = 1."""
    batch, dim, length = u.shape
    n = A.shape[1]
    B, _ = _grouped(u, B, B)
    one = B.new_ones(()).expand(batch, B.shape[1] * n, 1, length)
    if n > 1:  # state-major
        u, delta = (t.unsqueeze(1).expand(-1, n, -1, -1).flatten(1, 2) for t in (u, delta))
        delta_bias = None if delta_bias is None else delta_bias.repeat(n)
    B = B.transpose(1, 2).reshape(batch, -1, 1, length)
    h, _ = call_scan(u, delta, A.t().reshape(-1, 1), B, one, None, None, delta_bias, softplus, False, False)
    return h.unflatten(1, (n, dim)).transpose(1, 2)


def _grouped(u: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """B and C as ``[B, G, N, L]`` with one G, copied only where both are grouped differently."""
    batch, dim, length = u.shape
    counts = [dim if t.ndim == 2 else 1 if t.ndim == 3 else t.shape[1] for t in (B, C)]
    groups = math.lcm(*counts) if counts[0] != counts[1] else counts[0]

    def form(t: Tensor) -> Tensor:
        if t.ndim == 2:  # constant: a group per channel, the same at all times
            return t.view(1, dim, -1, 1).expand(batch, -1, -1, length)
        t = t.unsqueeze(1) if t.ndim == 3 else t
        if t.shape[1] == groups:
            return t
        return t.unsqueeze(2).expand(-1, -1, groups // t.shape[1], -1, -1).flatten(1, 2)

    return form(B), form(C)


# ------------------------------------------------------------------------------------------------- shapes and gradients


def _fake_forward(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, channels_last, last):
    dim = u.shape[2 if channels_last else 1]
    state = A.new_empty((u.shape[0], dim, A.shape[1]) if last else (0,))
    return u.new_empty(u.shape), state


def _fake_backward(grad, grad_last, u, delta, A, B, C, D, z, delta_bias, softplus, reverse, channels_last):
    absent = [like.new_empty(0) if t is None else t.new_empty(t.shape) for t, like in ((D, A), (z, u), (delta_bias, A))]
    return *(t.new_empty(t.shape) for t in (u, delta, A, B, C)), *absent


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    # Inputs alone: the states are computed again, which costs less than writing and reading them.
    ctx.save_for_backward(*inputs[:8])
    ctx.options = inputs[8:11]
    ctx.last = inputs[11]
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    if grad is None:
        grad = torch.zeros_like(inputs[0])
    grad_last = grad_last if ctx.last else None
    grads = torch.ops.openrec.selective_scan_backward(grad, grad_last, *inputs, *ctx.options)
    return *(g if t is not None else None for g, t in zip(grads, inputs)), None, None, None, None


if native.library is not None:
    torch.library.register_fake("openrec::selective_scan_forward", _fake_forward)
    torch.library.register_fake("openrec::selective_scan_backward", _fake_backward)
    torch.library.register_autograd("openrec::selective_scan_forward", _gradient, setup_context=_keep)
    no_double_backward("selective_scan_backward")
