"""Causal depthwise convolution over a short window: what a 1-D Mamba runs before its scan.

Idea and contract: Dao-AILab/causal-conv1d (BSD-3-Clause). Its compiled function is used where it is installed and the
tensors are on a GPU; otherwise, and as the reference, PyTorch's own convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from openrec.ops._checks import check_real, check_shape
from openrec.ops._load import choose

ACTIVATIONS = (None, "silu", "swish")


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """y_t = activation(bias + sum over k of weight_k x_(t - width + 1 + k)), per channel.

    Args:
        x: [B, D, L]. weight: [D, width]. bias: [D].
        initial_states: [B, D, width - 1], what came before ``x``; zeros if not given.
        return_final_states: also return the last ``width - 1`` inputs, to continue from.
        activation: ``None`` or "silu" ("swish" is the same).

    Returns:
        y [B, D, L] in the dtype of ``x``; with ``return_final_states`` also [B, D, width - 1].
    """
    _check("causal_conv1d", x, weight, bias, activation)
    if initial_states is not None:
        expected = (*x.shape[:2], weight.shape[1] - 1)
        check_shape("causal_conv1d", "initial_states", initial_states, expected, "[B, D, width-1]")
    # The compiled function asks for channels-last memory with states; those calls stay in PyTorch.
    states = initial_states is not None or return_final_states
    if choose("causal_conv1d", backend, x.device) != "reference" and not states:
        compiled = _compiled() if x.is_cuda and 2 <= weight.shape[1] <= 4 else None
        if compiled is not None:
            return compiled(x, weight, bias, activation=activation)
    return causal_conv1d_ref(x, weight, bias, initial_states, return_final_states, activation)


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``causal_conv1d`` in plain PyTorch."""
    _check("causal_conv1d", x, weight, bias, activation)
    before, length = weight.shape[1] - 1, x.shape[2]
    dtype = x.dtype
    x = x.to(weight.dtype)
    whole = F.pad(x, (before, 0)) if initial_states is None else torch.cat((initial_states.to(x.dtype), x), -1)
    y = F.conv1d(whole, weight.unsqueeze(1), bias, groups=weight.shape[0])
    y = (F.silu(y) if activation else y).to(dtype)
    return (y, whole[..., length:].to(dtype)) if return_final_states else y


def causal_conv1d_update(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None
) -> Tensor:
    """One step (or a few) of ``causal_conv1d``; ``conv_state`` is moved on in place.

    Args:
        x: [B, D], or [B, D, steps]. conv_state: [B, D, at least width - 1], the latest inputs last.

    Returns:
        y in the shape of ``x``.
    """
    steps = x.unsqueeze(-1) if x.ndim == 2 else x
    _check("causal_conv1d_update", steps, weight, bias, activation)
    check_shape("causal_conv1d_update", "conv_state", conv_state, (*steps.shape[:2], None), "[B, D, states]")
    width = weight.shape[1]
    if conv_state.shape[2] < width - 1:
        raise ValueError(f"causal_conv1d_update: conv_state must hold {width - 1} steps, got {conv_state.shape[2]}")
    whole = torch.cat((conv_state, steps.to(conv_state.dtype)), -1)
    conv_state.copy_(whole[..., -conv_state.shape[2] :] if conv_state.shape[2] else conv_state)
    recent = whole[..., whole.shape[2] - (width - 1) - steps.shape[2] :].to(weight.dtype)
    y = F.conv1d(recent, weight.unsqueeze(1), bias, groups=weight.shape[0])
    y = (F.silu(y) if activation else y).to(x.dtype)
    return y.squeeze(-1) if x.ndim == 2 else y


def _check(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> None:
    check_real(op, x=x, weight=weight, bias=bias)
    check_shape(op, "x", x, (None, None, None), "[B, D, L]")
    check_shape(op, "weight", weight, (x.shape[1], None), "[D, width]")
    if bias is not None:
        check_shape(op, "bias", bias, (x.shape[1],), "[D]")
    if activation not in ACTIVATIONS:
        raise ValueError(f'{op}: activation must be None, "silu" or "swish", got {activation!r}')


def _compiled():
    """The function of the package causal-conv1d, or ``None``."""
    try:
        from causal_conv1d import causal_conv1d_fn
    except ImportError:
        return None
    return causal_conv1d_fn
