"""Argument checks of the operators: each message says what was expected and what came."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def check_shape(op: str, name: str, tensor: Tensor, expected: tuple[int | None, ...], layout: str) -> None:
    """Refuse a tensor whose shape is not ``expected`` (``None``: any size); ``layout`` names the axes."""
    shape = tuple(tensor.shape)
    if len(shape) != len(expected) or any(e is not None and e != s for e, s in zip(expected, shape)):
        want = ", ".join("*" if e is None else str(e) for e in expected)
        raise ValueError(f"{op}: {name} must be {layout} = ({want}), got {shape}")


def check_real(op: str, **tensors: Tensor | None) -> None:
    """Refuse integer and complex tensors, and tensors on different devices."""
    device = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} must hold real floating-point numbers, got {tensor.dtype}")
        device = device or tensor.device
        if tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, the other tensors on {device}")


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 when any tensor holds float64, else float32: half precision is never computed in."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Autocast off inside: coordinates and recurrences lose their meaning with 8 bits of mantissa."""
    if not torch.is_autocast_enabled(device.type):  # an exporter cuts its graph at each region: minutes for a decoder
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield
