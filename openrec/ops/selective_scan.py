"""Selective scan: the linear recurrence of a state-space layer whose step, input and output maps vary with time.

    h_t = exp(delta_t A) * h_{t-1} + delta_t B_t u_t,      y_t = C_t . h_t + D * u_t

Idea: Gu & Dao, "Mamba" (state-spaces/mamba, Apache-2.0): A exact, B by Euler's rule. ``selective_scan_state`` is the
form of DAMamba (ltzovo/DAMamba), which returns the states. Computed in float32 (float64 when given) also under
autocast. The backward pass is written by hand: a reverse scan by the same routine.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from openrec.ops._checks import check_real, check_shape, compute_dtype, full_precision
from openrec.ops._load import choose
from openrec.ops._native_scan import call_scan, call_state
from openrec.ops.log_scan import log_scan

# Fewer numbers per time step than this and the cost is the call, not the arithmetic: then steps are run in parallel
# over chunks of the sequence, at about twice the arithmetic.
SMALL_STEP = 2048


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    reverse: bool = False,
    channels_last: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan with output map; any state size ``N``.

    Args:
        u, delta, z: [B, D, L]; ``z`` gates the result by ``silu(z)``. Tensors that lie channels-last in memory
            (``[B, L, D]`` transposed) are used in place.
        A: [D, N]. B, C: [B, N, L], grouped [B, G, N, L] (``D / G`` channels share one), or constant [D, N].
        D: [D], direct path from ``u`` to the output. delta_bias: [D], added to ``delta``.
        delta_softplus: the step is ``softplus(delta + delta_bias)``.
        reverse: run from the last step to the first; the last state is then that of step 0.
        channels_last: u, delta, z and y are [B, L, D], B and C [B, L, N] or [B, L, G, N].

    Returns:
        y [B, D, L] in the dtype of ``u``; with ``return_last_state`` also ``h_L`` [B, D, N], which carries no
        gradient.
    """
    chosen = choose("selective_scan", backend, u.device)
    if channels_last:
        u, delta, B, C = (_time_last(t) for t in (u, delta, B, C))
        z = None if z is None else _time_last(z)
    _check("selective_scan", u, delta, A, B, C, D, z, delta_bias)
    if chosen == "native":
        y, last = call_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state, reverse)
    else:
        y, last = _plain(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, chosen)
    y = y.transpose(1, 2) if channels_last else y
    return (y, last.detach()) if return_last_state else y


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    reverse: bool = False,
    channels_last: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """``selective_scan`` as a loop over time with automatic gradients: the definition."""
    args = (u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    return selective_scan(*args, reverse=reverse, channels_last=channels_last, backend="reference")


def selective_scan_state(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """The states of the recurrence, ``h`` [B, D, N, L]; arguments as in ``selective_scan``."""
    chosen = choose("selective_scan_state", backend, u.device)
    _check("selective_scan_state", u, delta, A, B, None, None, None, delta_bias)
    if chosen == "native":
        return call_state(u, delta, A, B, delta_bias, delta_softplus)
    with full_precision(u.device):
        run = _FORMS[chosen]
        h, _ = run(*_prepare(u, delta, A, B, None, delta_bias, delta_softplus))
    return h.flatten(2, 3).permute(0, 2, 3, 1).to(u.dtype)  # [B, L, G, K, N] -> [B, D, N, L]


def selective_scan_state_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """``selective_scan_state`` as a loop over time with automatic gradients: the definition."""
    return selective_scan_state(u, delta, A, B, delta_bias, delta_softplus, backend="reference")


def _time_last(t: Tensor) -> Tensor:
    """A view with time as the last axis; constant maps [D, N] stay."""
    if t.ndim == 2:
        return t
    return t.transpose(1, 2) if t.ndim == 3 else t.permute(0, 2, 3, 1)


def _plain(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, backend) -> tuple[Tensor, Tensor]:
    """Both plain-PyTorch forms: output [B, D, L] and last state [B, D, N]."""
    if reverse:
        u, delta, z, B, C = (t if t is None or t.ndim == 2 else t.flip(-1) for t in (u, delta, z, B, C))
    with full_precision(u.device):
        run = _FORMS[backend]
        y, last = run(*_prepare(u, delta, A, B, C, delta_bias, softplus))
        y = _finish(y, u, D, z)
    return (y.flip(-1) if reverse else y), last.flatten(1, 2)


def _check(op, u, delta, A, B, C, D, z, delta_bias) -> None:
    check_real(op, u=u, delta=delta, A=A, B=B, C=C, D=D, z=z, delta_bias=delta_bias)
    check_shape(op, "u", u, (None, None, None), "[B, D, L]")
    batch, dim, length = u.shape
    if length == 0:
        raise ValueError(f"{op}: the sequence is empty (u has shape {tuple(u.shape)})")
    check_shape(op, "delta", delta, (batch, dim, length), "[B, D, L]")
    check_shape(op, "A", A, (dim, None), "[D, N]")
    if z is not None:
        check_shape(op, "z", z, (batch, dim, length), "[B, D, L]")
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            check_shape(op, name, vector, (dim,), "[D]")
    for name, maps in (("B", B), ("C", C)):
        if maps is None:
            continue
        if maps.ndim == 2:
            check_shape(op, name, maps, (dim, A.shape[1]), "[D, N]")
        elif maps.ndim == 3:
            check_shape(op, name, maps, (batch, A.shape[1], length), "[B, N, L]")
        else:
            check_shape(op, name, maps, (batch, None, A.shape[1], length), "[B, G, N, L]")
            if dim % maps.shape[1]:
                raise ValueError(f"{op}: {dim} channels cannot be split over the {maps.shape[1]} groups of {name}")


def _prepare(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor | None, delta_bias: Tensor | None, softplus: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """One layout for every form: u, delta [B, L, G, K], A [G, K, N], B and C broadcastable to [B, L, G, K, N].

    Time comes second, so a channels-last map is read in place.
    """
    dtype = compute_dtype(u, delta, A, B, C, delta_bias)
    groups = [t.shape[1] for t in (B, C) if t is not None and t.ndim == 4]
    g = math.lcm(*groups) if groups else 1
    u, delta, A, B = u.to(dtype), delta.to(dtype), A.to(dtype), B.to(dtype)
    C = None if C is None else C.to(dtype)

    def maps(t: Tensor) -> Tensor:
        if t.ndim == 2:  # constant
            return t.view(1, 1, g, -1, t.shape[1])
        t = t.unsqueeze(1) if t.ndim == 3 else t
        if t.shape[1] not in (1, g):
            t = t.repeat_interleave(g // t.shape[1], 1)
        return t.permute(0, 3, 1, 2).unsqueeze(3)  # [B, L, G, 1, N]

    delta = delta.transpose(1, 2)
    if delta_bias is not None:
        delta = delta + delta_bias.to(dtype)
    if softplus:
        delta = F.softplus(delta)
    u, delta = (t.unflatten(2, (g, -1)) for t in (u.transpose(1, 2), delta))
    return u, delta, A.unflatten(0, (g, -1)), maps(B), None if C is None else maps(C)


def _finish(y: Tensor, u: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """Direct path, gate, and back to [B, D, L] (a view)."""
    y = y.flatten(2)  # [B, L, D]
    if D is not None:
        y = torch.addcmul(y, u.transpose(1, 2).to(y.dtype), D.to(y.dtype))
    if z is not None:
        y = y * F.silu(z.transpose(1, 2).to(y.dtype))
    return y.transpose(1, 2).to(u.dtype)


def _reference(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor | None) -> tuple[Tensor, Tensor]:
    """States (``C`` absent) or outputs, and the last state, by a loop over time."""
    x = (delta * u).unsqueeze(-1) * B  # [B, L, G, K, N]
    decay = torch.exp(delta.unsqueeze(-1) * A)
    h, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = decay[:, t] * h + x[:, t]
        states.append(h)
    stacked = torch.stack(states, 1)
    return (stacked if C is None else (stacked * C).sum(-1)), h


@torch.compiler.disable  # a loop over time is one opaque step for the compiler, not hundreds of small ones
def _fast(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor | None) -> tuple[Tensor, Tensor]:
    return _Scan.apply(u, delta, A, B, C)


def _parallel(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same in a logarithmic number of steps, without a loop over time: what an exporter can write down."""
    h = log_scan(torch.exp(delta.unsqueeze(-1) * A), (delta * u).unsqueeze(-1) * B)
    return (h if C is None else _sum_states(h * C)), h[:, -1]


_FORMS = {"reference": _reference, "torch": _fast, "parallel": _parallel}


class _Scan(torch.autograd.Function):
    """The recurrence with a hand-written gradient; layouts as in ``_prepare``."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor | None) -> tuple[Tensor, Tensor]:
        decay, h = _states(u, delta, A, B)
        y = h if C is None else _sum_states(h * C)
        last = h[:, -1].clone()
        ctx.mark_non_differentiable(last)
        # One state per channel: keeping decay and states costs no more than keeping u. Larger ones are recomputed.
        keep = (decay, h) if A.shape[-1] == 1 else (None, None)
        ctx.save_for_backward(u, delta, A, B, C, *keep)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, decay, h = ctx.saved_tensors
        if decay is None:
            decay, h = _states(u, delta, A, B)
        d_c = None
        if C is None:
            d_h = grad.clone(memory_format=torch.contiguous_format)
        else:
            grad = grad.unsqueeze(-1)
            d_h = torch.mul(grad, C, out=torch.empty_like(h))
            d_c = (grad * h).sum_to_size(C.shape) if ctx.needs_input_grad[4] else None
        scan_(decay, d_h, reverse=True)
        # d_exponent: gradient of delta * A, through exp
        d_exponent = torch.empty_like(h)
        d_exponent[:, 0] = 0
        torch.mul(d_h[:, 1:], h[:, :-1], out=d_exponent[:, 1:])
        d_exponent.mul_(decay)
        d_input = _sum_states(d_h * B)  # gradient of delta * u
        d_delta = _sum_states(d_exponent * A).addcmul_(d_input, u)
        d_a = d_exponent.mul_(delta.unsqueeze(-1)).sum((0, 1))
        d_b = d_h.mul_((delta * u).unsqueeze(-1)).sum_to_size(B.shape) if ctx.needs_input_grad[3] else None
        return d_input.mul_(delta), d_delta, d_a, d_b, d_c


def _sum_states(x: Tensor) -> Tensor:
    """Sum over the state axis; without a pass over memory when there is one state."""
    return x.squeeze(-1) if x.shape[-1] == 1 else x.sum(-1)


def _states(u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Decay factors and states, both [B, L, G, K, N]."""
    shape = (*u.shape, A.shape[-1])
    decay = torch.mul(delta.unsqueeze(-1), A, out=u.new_empty(shape)).exp_()
    h = torch.mul((delta * u).unsqueeze(-1), B, out=u.new_empty(shape))
    scan_(decay, h)
    return decay, h


def scan_(decay: Tensor, x: Tensor, reverse: bool = False) -> None:
    """In place ``x_t += decay_t x_{t-1}`` along axis 1, or, reversed, ``x_t += decay_{t+1} x_{t+1}``.

    ``decay`` and ``x`` are contiguous [B, L, ...]; ``decay`` is left as it is.
    """
    length, width = x.shape[1], x[:, 0].numel()
    if length >= 32 and (width < SMALL_STEP or x.is_cuda):
        _scan_chunks_(decay, x, reverse)
        return
    xs, decays = x.unbind(1), decay.unbind(1)
    if reverse:
        for t in range(length - 2, -1, -1):
            xs[t].addcmul_(decays[t + 1], xs[t + 1])
    else:
        for t in range(1, length):
            xs[t].addcmul_(decays[t], xs[t - 1])


def _scan_chunks_(decay: Tensor, x: Tensor, reverse: bool) -> None:
    """``scan_`` in two levels: all chunks step by step at once, then the carry from chunk to chunk."""
    length = x.shape[1]
    span = 2 ** round(math.log2(length) / 2)
    count = -(-length // span)
    padded = (x.shape[0], count * span, x[0, 0].numel())
    a, v = x.new_zeros(padded), x.new_zeros(padded)
    flat_x, flat_decay = x.view(x.shape[0], length, -1), decay.view(x.shape[0], length, -1)
    if reverse:  # time runs backwards in v; a is shifted so that both directions share the loop below
        v[:, :length] = flat_x.flip(1)
        a[:, 1:length] = flat_decay[:, 1:].flip(1)
    else:
        v[:, :length] = flat_x
        a[:, :length] = flat_decay
    a, v = a.view(-1, count, span, padded[2]), v.view(-1, count, span, padded[2])
    steps_a, steps_v = a.unbind(2), v.unbind(2)
    for t in range(1, span):
        steps_v[t].addcmul_(steps_a[t], steps_v[t - 1])
        steps_a[t].mul_(steps_a[t - 1])  # decay since the start of the chunk
    for k in range(1, count):
        v[:, k].addcmul_(a[:, k], v[:, k - 1, -1:])
    out = v.view(padded)[:, :length]
    flat_x.copy_(out.flip(1) if reverse else out)
