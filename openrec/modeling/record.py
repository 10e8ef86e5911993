"""Modules tell what they look at: ``record(self, "loc", points)`` costs one check until a :class:`Recorder` listens.

A module calls :func:`record` wherever it holds something worth a look (sampling points, attention weights, step sizes).
Nobody listens in normal training, evaluation and export: the call returns at once, and a compiled or exported graph
holds nothing of it. Work that only serves the record belongs behind ``if recording():``.

Keys and shapes (systems.md 0.5), coordinates as (x, y):

========  =======================  ==========================================================================
key       shape                    meaning
========  =======================  ==========================================================================
loc       [B, M, Q, P, 2]          sampling points, normalised to [0, 1] over the map they sample
ref       [B, Q, 2]                reference points the offsets start from, in [0, 1]
offset    [..., 2]                 offsets in pixels of the map they sample
attn      [B, T|.., K]             softmax weights, last axis sums to one (a 2-D map as [B, T, H, W])
grid      [B, H, W, 2]             sampling grid of a transform, in [0, 1]
fiducial  [B, K, 2]                control points of a transform, in [0, 1]
theta     [B, 2, 3]                affine matrix of a transform
image     [B, 3, H, W]             rectified image
box       [B, Q, 4]                cxcywh in [0, 1]
score     [B, Q, classes]          class probabilities that belong to ``box``
dt        any                      step sizes of a scan, after softplus
decay     any                      exp(dt A) of a scan
state     any                      states of a scan
========  =======================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

_active: Recorder | None = None


def recording() -> bool:
    """Is anybody listening? Guards work that only the record needs (False inside compiled and exported graphs)."""
    return _active is not None and not torch.compiler.is_compiling()


def record(module: nn.Module, key: str, tensor: Tensor) -> None:
    """Hand ``tensor`` to the active :class:`Recorder`; nothing at all when there is none."""
    if _active is not None and not torch.compiler.is_compiling():
        _active.add(module, key, tensor)


class Recorder:
    """Context in which :func:`record` keeps what modules tell, under (module name, key).

    Args:
        model: gives modules their names (``named_modules``); a module outside it goes by its class name.
        reduce: called as ``reduce(key, tensor)`` on each recorded tensor, what it returns is kept (say, a dict of
            numbers); None keeps the detached tensor itself. It runs without gradients.

    A module that records one key several times in a forward (a decoder's steps) has several entries, in order.
    """

    def __init__(self, model: nn.Module | None = None, reduce: Callable[[str, Tensor], Any] | None = None):
        self._names = {id(module): name for name, module in model.named_modules()} if model is not None else {}
        self._reduce = reduce
        self._outer: Recorder | None = None
        self.entries: dict[tuple[str, str], list[Any]] = {}

    def __enter__(self) -> Recorder:
        global _active
        self._outer, _active = _active, self
        return self

    def __exit__(self, *exc: object) -> None:
        global _active
        _active, self._outer = self._outer, None

    def add(self, module: nn.Module, key: str, tensor: Tensor) -> None:
        """Keep one recorded tensor (reduced where ``reduce`` was given)."""
        name = self._names.get(id(module)) or type(module).__name__
        with torch.no_grad():
            kept = tensor.detach() if self._reduce is None else self._reduce(key, tensor.detach())
        self.entries.setdefault((name, key), []).append(kept)

    def clear(self) -> None:
        """Forget everything kept so far."""
        self.entries.clear()

    def __iter__(self) -> Iterator[tuple[str, str, list[Any]]]:
        """(module name, key, entries), in the order in which modules first spoke."""
        for (name, key), kept in self.entries.items():
            yield name, key, kept
