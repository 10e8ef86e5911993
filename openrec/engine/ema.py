"""Exponential moving average of the weights (Polyak & Juditsky, 1992)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """A second set of weights: after every optimizer step ``average += (1 - d) * (weight - average)``.

    Args:
        decay: d in the long run; at step t it is at most ``(1 + t) / (10 + t)``, so that the average does not
            drag the random start along. Buffers are copied, not averaged.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay, self.updates = model, decay, 0
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self._averaged = [n for n, p in model.named_parameters() if p.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's weights of now into account."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = self.model.state_dict()
        torch._foreach_lerp_([self.weights[n] for n in self._averaged], [now[n] for n in self._averaged], 1 - decay)
        averaged = set(self._averaged)
        for name, value in now.items():
            if name not in averaged:
                self.weights[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the model holds the average."""
        own = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.weights)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def state(self) -> dict[str, object]:
        return {"decay": self.decay, "updates": self.updates, "state_dict": self.weights}

    def load(self, state: Mapping[str, object]) -> None:
        """Continue with the average of a checkpoint."""
        weights = state["state_dict"]
        assert isinstance(weights, Mapping)
        self.updates = int(state["updates"])  # type: ignore[call-overload]
        for name, value in weights.items():
            assert isinstance(value, Tensor)
            self.weights[name].copy_(value)
