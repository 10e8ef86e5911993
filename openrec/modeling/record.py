"""What modules tell a diagnosis: ``record(self, "attn", weights)`` costs one attribute check while nobody listens."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Listener = Callable[[nn.Module, str, Tensor], None]


def recording(module: nn.Module) -> bool:
    """Whether somebody listens to ``module``: ask before computing what only a diagnosis needs."""
    return getattr(module, "_listener", None) is not None


def record(module: nn.Module, key: str, tensor: Tensor) -> None:
    """Hand ``tensor`` to the listener of ``module``, if there is one."""
    listener = getattr(module, "_listener", None)
    if listener is not None:
        listener(module, key, tensor)
