"""Smoothed numbers and the training line."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping
from typing import Any


class Medians:
    """Medians over the last ``window`` values of each name, in the order of their first appearance."""

    def __init__(self, window: int) -> None:
        self.window = max(1, window)
        self._values: dict[str, deque[float]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._values.setdefault(name, deque(maxlen=self.window)).append(float(value))

    def get(self) -> dict[str, float]:
        return {name: statistics.median(values) for name, values in self._values.items()}

    def state(self) -> dict[str, list[float]]:
        return {name: list(values) for name, values in self._values.items()}

    def load(self, state: Mapping[str, list[float]]) -> None:
        self._values = {name: deque(values, maxlen=self.window) for name, values in state.items()}


class Clock:
    """Seconds waited for data and seconds per step since the last line; time left."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=200)
        self.restart()

    def restart(self) -> None:
        """Begin a new line."""
        self.reader = self.batch = 0.0
        self.steps = self.samples = 0
        self._last = time.perf_counter()

    def data_ready(self) -> None:
        """The step's batches have arrived."""
        self.reader += time.perf_counter() - self._last

    def step_done(self, samples: int) -> None:
        now = time.perf_counter()
        self.batch += now - self._last
        self._recent.append(now - self._last)
        self._last = now
        self.steps, self.samples = self.steps + 1, self.samples + samples

    def pause(self) -> None:
        """Do not count what happened since the last step (an evaluation, a checkpoint)."""
        self._last = time.perf_counter()

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.batch if self.batch else 0.0

    def line(self, steps_left: int) -> str:
        """The time part of the training line."""
        n = max(1, self.steps)
        seconds = statistics.fmean(self._recent) * steps_left if self._recent else 0.0
        return (
            f"avg_reader_cost: {self.reader / n:.5f} s, avg_batch_cost: {self.batch / n:.5f} s, "
            f"avg_samples: {self.samples / n}, ips: {self.samples_per_second:.5f} samples/s, eta: {duration(seconds)}"
        )


def duration(seconds: float) -> str:
    """``h:mm:ss``"""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def training_line(epoch: int, epochs: int, step: int, numbers: Mapping[str, Any], clock: Clock, steps_left: int) -> str:
    """``epoch: [e/E], global_step: s, lr: ..., losses..., times, eta``; ``numbers`` starts with ``lr``."""
    shown = ", ".join(f"{name}: {value:.6f}" for name, value in numbers.items())
    return f"epoch: [{epoch}/{epochs}], global_step: {step}, {shown}, {clock.line(steps_left)}"
