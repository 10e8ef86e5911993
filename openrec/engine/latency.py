"""How long a model takes: warmed up, synchronised, as a table of median and 95th percentile."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

WARM_UP, RUNS = 10, 50


@dataclass(frozen=True)
class Latency:
    """Times of one input size, in milliseconds for the whole batch."""

    batch: int
    width: int
    height: int
    median: float
    p95: float
    best: float

    @property
    def per_image(self) -> float:
        return self.median / self.batch


def measure(
    run: Callable[[np.ndarray], Any],
    shapes: Sequence[tuple[int, int]],
    batches: Sequence[int] = (1, 32),
    *,
    channels: int = 3,
    warm_up: int = WARM_UP,
    runs: int = RUNS,
    seconds: float = 10.0,
) -> list[Latency]:
    """Time ``run`` from an array in memory to predictions in memory.

    Args:
        run: float32 ``[B, C, H, W]`` -> predictions, such as the ``run`` of a recogniser's backend.
        shapes: ``(width, height)`` px.
        warm_up: calls of every size that are not counted: they allocate, choose algorithms, compile.
        runs: counted calls; fewer (at least 5) where they take more than ``seconds``.
    """
    rng, found = np.random.default_rng(0), []
    for width, height in shapes:
        for batch in batches:
            images = rng.uniform(-1, 1, (batch, channels, height, width)).astype(np.float32)
            for _ in range(warm_up):
                _timed(run, images)
            times: list[float] = []
            while len(times) < runs and (len(times) < 5 or sum(times) < 1000 * seconds):
                times.append(_timed(run, images))
            found.append(
                Latency(batch, width, height, float(np.median(times)), float(np.percentile(times, 95)), min(times))
            )
    return found


def _timed(run: Callable[[np.ndarray], Any], images: np.ndarray) -> float:
    """Milliseconds of one call; GPUs work behind the caller's back, so they are waited for on both sides."""
    _wait()
    start = time.perf_counter()
    run(images)
    _wait()
    return 1000 * (time.perf_counter() - start)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    if hasattr(torch, "mps") and torch.backends.mps.is_available():
        torch.mps.synchronize()


def machine(device: torch.device | str = "cpu") -> str:
    """One line on what measured."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{device} ({name}), torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"


def latency_table(rows: Sequence[Latency], where: str) -> str:
    """The Markdown table, with how it was measured."""
    lines = [
        f"Latency on {where}; from an array to predictions, {WARM_UP} calls to warm up, synchronised around each call.",
        "",
        "| input W x H | batch | median ms | 95 % ms | fastest ms | ms per image | images per s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r.width} x {r.height} | {r.batch} | {r.median:.2f} | {r.p95:.2f} | {r.best:.2f} | {r.per_image:.2f} | "
        f"{1000 / r.per_image:.0f} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"
