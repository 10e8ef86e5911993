"""The selective scan in a logarithmic number of steps, for exporters: no loop over time, no operator of our own.

    h_t = a_t h_(t-1) + x_t      is associative in the pairs (a, x):  (a1, x1) then (a2, x2) = (a1 a2, a2 x1 + x2)

Idea: Hillis & Steele, "Data Parallel Algorithms", 1986: in step k every position takes in the result ``2**k`` positions
before it. Two levels save most of the work: chunks of ``CHUNK`` positions side by side, then the chunks' ends. The
number of steps is fixed when a graph is traced, so a traced graph is right up to ``longest`` positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 16
_longest = 4096


@contextmanager
def longest_sequence(length: int) -> Iterator[None]:
    """Trace graphs that hold for sequences of up to ``length`` positions."""
    global _longest
    before, _longest = _longest, max(int(length), 1)
    try:
        yield
    finally:
        _longest = before


def log_scan(decay: Tensor, x: Tensor) -> Tensor:
    """``h`` of ``h_t = decay_t h_(t-1) + x_t`` along axis 1; ``decay`` and ``x`` are ``[B, L, ...]``.

    Raises:
        ValueError: more than the positions that a traced graph is made for (see ``longest_sequence``).
    """
    batch, length = x.shape[:2]
    shape = x.shape
    if isinstance(length, int) and length > _longest and torch.compiler.is_compiling():
        raise ValueError(f"log_scan: a sequence of {length}, this graph is made for {_longest}")
    decay, x = decay.flatten(2), x.flatten(2)  # [B, L, C]
    chunks = (length + CHUNK - 1) // CHUNK
    spare = (0, 0, 0, chunks * CHUNK - length)  # at the end: nothing flows back from there
    decay, x = (F.pad(t, spare).reshape(batch, chunks, CHUNK, -1) for t in (decay, x))
    decay, x = _steps(decay, x, 2, CHUNK)  # since the start of the chunk
    most = _longest if torch.compiler.is_compiling() or torch.jit.is_tracing() else length
    _, ends = _steps(decay[:, :, -1], x[:, :, -1], 1, (most + CHUNK - 1) // CHUNK)
    carry = F.pad(ends, (0, 0, 1, 0))[:, :chunks]
    h = x + decay * carry.unsqueeze(2)
    return h.flatten(1, 2)[:, :length].reshape(shape)


def _steps(decay: Tensor, x: Tensor, axis: int, length: int) -> tuple[Tensor, Tensor]:
    """The scan of pairs along ``axis``, right for up to ``length`` positions; ``[..., length, C]``."""
    shift = 1
    while shift < length:
        x = x + decay * _later(x, axis, shift, 0.0)
        if shift * 2 < length or axis == 2:  # the last step's product of decays is used by the carry alone
            decay = decay * _later(decay, axis, shift, 1.0)
        shift *= 2
    return decay, x


def _later(t: Tensor, axis: int, shift: int, fill: float) -> Tensor:
    """``t`` moved ``shift`` positions towards the end of ``axis``, the second but last; ``fill`` comes in."""
    return F.pad(t, (0, 0, shift, 0), value=fill).narrow(axis, 0, t.shape[axis])
