"""Pictures of a comparison: curves against steps and minutes, scores, and what they cost."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openrec.compare.systems import Result
from openrec.curves import Log, read_log, smooth
from openrec.errors import DataError

logger = logging.getLogger("openrec")
Runs = Sequence[tuple[Result, Log]]


def pictures(results: Sequence[Result], output: Path) -> list[Path]:
    """Draw them into ``output``; none where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no pictures: matplotlib is missing (pip install 'openrec[viz]').")
        return []
    runs = []
    for result in results:
        try:
            runs.append((result, read_log(output / result.name / "run")))
        except DataError as error:
            logger.warning("no curve of %s: %s", result.name, error)
    made = []
    height = 1.5 + 0.28 * len(results)
    for name, size, draw in (
        ("curves", (13, 9), lambda f: _curves(f, runs)),
        ("accuracy", (12, height), lambda f: _scores(f, results)),
        ("accuracy_and_cost", (13, 5), lambda f: _costs(f, results)),
    ):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        made.append(output / f"{name}.png")
        figure.savefig(made[-1], dpi=110)
    return made


def short(name: str) -> str:
    return name.removesuffix("_tiny")


def _style(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4], "linewidth": 1.3}


def minutes_at(log: Log, steps: Sequence[int]) -> list[float]:
    """Minutes of work until each of ``steps``, between those that the log names."""
    known, seconds = log.series("work", "seconds")
    return (np.interp(steps, [0, *known], [0.0, *seconds]) / 60).tolist() if known else []


def _curves(figure: Any, runs: Runs) -> None:
    axes = figure.subplots(2, 2, sharey="row")
    rows = (("training loss (each system's own)", "train", "loss"), ("accuracy on held-out words, %", "eval", "acc"))
    for row, (title, event, key) in zip(axes, rows):
        for number, (result, log) in enumerate(runs):
            steps, values = log.series(event, key)
            values = smooth(values, 0.8) if event == "train" else [100 * v for v in values]
            marker = None if event == "train" else "."
            row[0].plot(steps, values, label=short(result.name), marker=marker, **_style(number))
            if minutes := minutes_at(log, steps):
                row[1].plot(minutes, values, marker=marker, **_style(number))
        row[0].set_ylabel(title, fontsize=9)
    for axis in axes.ravel():
        axis.grid(alpha=0.3)
    for axis in axes[0]:
        axis.set_yscale("log")
    for axis, title in zip(axes[1], ("optimizer steps", "minutes of work")):
        axis.set_xlabel(title, fontsize=9)
    _legend(figure)


def _scores(figure: Any, results: Sequence[Result]) -> None:
    ordered = sorted(results, key=lambda r: r.acc or 0.0)
    panels: list[tuple[str, list[tuple[str, Callable[[Result], float | None]]]]] = [
        ("held-out words, %", [("accuracy", lambda r: r.acc), ("1-NED", lambda r: r.norm_edit_dis)]),
        ("real words, %", [
            ("accuracy", lambda r: r.real_acc), ("1-NED", lambda r: r.real_norm_edit_dis),
            ("accuracy, words it can spell", lambda r: r.real_fit_acc),
        ]),
    ]  # fmt: skip
    panels = [p for p in panels if any(value(r) is not None for _, value in p[1] for r in ordered)]
    for axis, (title, series) in zip(np.ravel(figure.subplots(1, max(1, len(panels)), sharey=True)), panels):
        for (label, value), marker in zip(series, "o|x"):
            axis.plot([100 * (value(r) or 0.0) for r in ordered], range(len(ordered)), marker, label=label)
        axis.set_yticks(range(len(ordered)), [short(r.name) for r in ordered], fontsize=8)
        axis.set_xlim(-2, 102)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="lower right")


def _costs(figure: Any, results: Sequence[Result]) -> None:
    panels: tuple[tuple[str, Callable[[Result], float]], ...] = (
        ("parameters, thousands", lambda r: r.parameters / 1e3), ("MFLOP per image", lambda r: r.flops / 1e6),
        ("training images/s", lambda r: r.train_ips), ("reading images/s", lambda r: r.infer_ips),
        ("latency of one, ms", lambda r: r.latency_ms),
    )  # fmt: skip
    for axis, (title, value) in zip(figure.subplots(1, len(panels), sharey=True), panels):
        for number, result in enumerate(results):
            if result.acc is not None:
                marker = "os^D"[number // 10 % 4]  # colours come round again, as lines do in the curves
                axis.plot(value(result), 100 * result.acc, marker, color=f"C{number % 10}", label=short(result.name))
        axis.set_xlabel(title, fontsize=9)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy on held-out words, %", fontsize=9)
    _legend(figure)


def _legend(figure: Any) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
