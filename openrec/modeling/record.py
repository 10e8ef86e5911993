"""What modules tell a diagnosis: ``record(self, "attn", weights)`` costs one attribute check while nobody listens.

Keys and shapes (coordinates are (x, y)):

========  ================  ===================================================================================
loc       [B, M, Q, P, 2]   sampling points of M groups or heads, in [0, 1] of the map they sample
ref       [.., 2]           points the offsets start from, in [0, 1]
offset    [.., 2]           offsets in pixels of the map they sample
attn      [B, .., K]        softmax weights over K places, row by row; over a whole map also [B, .., T, H, W]
looked    [B, H, W]         how much each place of a map is looked at, summed over queries, where windows cut it
mixed     [B, heads, T, K]  attention maps after re-attention's mixing and norm: rows need not sum to one
mixing    [1, h, h]         re-attention's theta, for h heads
table     [1, h, dy, dx]    what a displacement adds to the scores of h heads; none is in the middle
grid      [B, H, W, 2]      sampling grid of a transform, in [0, 1] of its input
fiducial  [B, K, 2]         control points of a transform, in [0, 1] of its input
theta     [B, 2, 3]         affine matrix of a transform
box       [B, Q, 4]         centre, width and height in [0, 1]
sigma     [B, Q, 2]         standard deviations of the Gaussians in a box, in [0, 1]
score     [B, Q]            probability that a query's box holds a character
dt        [B, H, W, ..]     step sizes of a scan
decay     [B, H, W, ..]     what a step leaves of a scan's state, exp(dt * A)
state     [B, D, N]         the last state of a scan
feature   [B, C, H, W]      what a stage or an encoder gives, of an encoder of sequences [B, N, C]
========  ================  ===================================================================================

Compiled and exported graphs hold nothing of it: :func:`record` is silent while a graph is traced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Listener = Callable[[nn.Module, str, Tensor], None]


def recording(module: nn.Module) -> bool:
    """Whether somebody listens to ``module``: ask before computing what only a diagnosis needs."""
    return not torch.compiler.is_compiling() and getattr(module, "_listener", None) is not None


def record(module: nn.Module, key: str, tensor: Tensor) -> None:
    """Hand ``tensor`` to the listener of ``module``, if there is one."""
    if recording(module):
        module._listener(module, key, tensor)  # type: ignore[operator]


def heard(module: nn.Module, tensor: Tensor) -> Tensor:
    """Of a batch ``[B, ..]`` the samples that the listener keeps: for what takes much memory to compute."""
    return tensor[: getattr(getattr(module, "_listener", None), "samples", None)]


class Recorder:
    """Context that listens to all modules of a model.

    Args:
        model: the bare model; its ``named_modules`` give the names.
        reduce: ``reduce(key, tensor)``, whatever it returns is kept; None keeps the detached tensor.
        samples: how many of a batch are enough, see ``heard``; None: all.

    ``entries`` maps (module name, key) to a list: a module may tell a key several times in a pass (once per step of a
    recurrent decoder). Listeners that were there before are put back on leaving.
    """

    def __init__(
        self, model: nn.Module, reduce: Callable[[str, Tensor], Any] | None = None, samples: int | None = None
    ) -> None:
        self.samples = samples
        self.names: Mapping[nn.Module, str] = {module: name for name, module in model.named_modules()}
        self.entries: dict[tuple[str, str], list[Any]] = {}
        self._reduce, self._before = reduce, {}  # type: ignore[var-annotated]

    def __enter__(self) -> Recorder:
        self._before = {module: getattr(module, "_listener", None) for module in self.names}
        for module in self.names:
            module._listener = self  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        for module, listener in self._before.items():
            module._listener = listener

    @torch.no_grad()
    def __call__(self, module: nn.Module, key: str, tensor: Tensor) -> None:
        kept = tensor.detach() if self._reduce is None else self._reduce(key, tensor.detach())
        self.entries.setdefault((self.names[module], key), []).append(kept)

    def of(self, key: str) -> dict[str, list[Any]]:
        """What was told under ``key``, by module name, in the order in which modules first told it."""
        return {name: kept for (name, k), kept in self.entries.items() if k == key}
