"""What a comparison writes: ``table.md``, ``table.csv`` and three pictures."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openrec.compare.systems import Result
from openrec.curves import Log, read_log, smooth
from openrec.errors import DataError

logger = logging.getLogger("openrec")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


# heading, text of a result
_COLUMNS: list[tuple[str, Callable[[Result], str]]] = [
    ("system", lambda r: r.name),
    ("accuracy %", lambda r: _percent(r.acc)),
    ("1-NED %", lambda r: _percent(r.norm_edit_dis)),
    ("real words: accuracy %", lambda r: _percent(r.real_acc)),
    ("real words: 1-NED %", lambda r: _percent(r.real_norm_edit_dis)),
    ("parameters, thousands", lambda r: f"{r.parameters / 1e3:.0f}"),
    ("MFLOP per image", lambda r: f"{r.flops / 1e6:.1f}"),
    ("training images/s", lambda r: f"{r.train_ips:.0f}"),
    ("reading images/s", lambda r: f"{r.infer_ips:.0f}"),
    ("latency of one, ms", lambda r: f"{r.latency_ms:.1f}"),
    ("memory of a training step, MiB", lambda r: f"{r.peak_memory_mib:.0f}"),
    ("steps", lambda r: str(r.steps)),
    ("minutes of work", lambda r: f"{r.work_minutes:.1f}"),
]


def columns(results: Sequence[Result]) -> list[tuple[str, Callable[[Result], str]]]:
    """Those that hold something."""
    return [c for c in _COLUMNS if any(c[1](r) for r in results)]


def markdown(results: Sequence[Result], command: str = "") -> str:
    """The table, best accuracy first, with the conditions under which it was made."""
    ordered = sorted(results, key=lambda r: -(r.acc if r.acc is not None else -1))
    first, shown = ordered[0], columns(ordered)
    lines = [
        f"Budget of each system: {first.budget}; seed {first.seed}; scored: the last weights on {first.samples} words"
        + (f" and on {first.real_samples} real words" if first.real_samples else "") + ".",
        "Speeds without data, batch " + "/".join(sorted({str(r.batch_size) for r in ordered}))
        + " in training and 32 in reading; " + "; ".join(sorted({r.machine for r in ordered})) + ".",
    ]  # fmt: skip
    if len({r.data for r in ordered}) > 1:
        lines.append("**The systems did not train on the same data**: their Train sections differ beyond the labels.")
    if command:
        lines.append(f"Command: `{command}`")
    lines += ["", "| " + " | ".join(c[0] for c in shown) + " |", "|---" + "|---:" * (len(shown) - 1) + "|"]
    lines += ["| " + " | ".join(c[1](r) for c in shown) + " |" for r in ordered]
    return "\n".join(lines) + "\n"


def write_csv(results: Sequence[Result], path: Path) -> None:
    """All numbers in full, one row a system."""
    rows = [{k: v for k, v in asdict(r).items() if k not in ("conditions", "data")} for r in results]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_all(results: Sequence[Result], output: Path, command: str = "") -> list[Path]:
    """Table, CSV and pictures (those only where matplotlib is installed) of the finished systems."""
    text, data = output / "table.md", output / "table.csv"
    text.write_text(markdown(results, command), encoding="utf-8")
    write_csv(results, data)
    return [text, data, *_pictures(results, output)]


def _pictures(results: Sequence[Result], output: Path) -> list[Path]:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no pictures: matplotlib is missing (pip install 'openrec[viz]').")
        return []
    logs = []
    for result in results:
        try:
            logs.append((result, read_log(output / result.name / "run")))
        except DataError as error:
            logger.warning("no curve of %s: %s", result.name, error)
    made = []
    for name, draw in (("curves", _curves), ("accuracy_and_cost", _costs)):
        figure = Figure(figsize=(12, 5), layout="constrained")
        draw(figure, results, logs)
        made.append(output / f"{name}.png")
        figure.savefig(made[-1], dpi=110)
    return made


def _style(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "linestyle": ("-", "--", ":", "-.")[number // 10 % 4], "linewidth": 1.3}


def _curves(figure: Any, results: Sequence[Result], logs: Sequence[tuple[Result, Log]]) -> None:
    loss, accuracy = figure.subplots(1, 2)
    for number, (result, log) in enumerate(logs):
        # of the budget, not steps: a system that does more steps in its minutes ends where the others end
        steps, values = log.series("train", "loss")
        loss.plot([s / result.steps for s in steps], smooth(values, 0.8), label=result.name, **_style(number))
        steps, values = log.series("eval", "acc")
        accuracy.plot([s / result.steps for s in steps], [100 * v for v in values], marker=".", **_style(number))
    loss.set_yscale("log")
    loss.set_title("training loss (each system's own)", fontsize=10)
    accuracy.set_title("accuracy on held-out words, %", fontsize=10)
    for axis in (loss, accuracy):
        axis.set_xlabel("share of the budget", fontsize=9)
        axis.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)


def _costs(figure: Any, results: Sequence[Result], logs: Any) -> None:
    panels = (
        ("parameters, thousands", lambda r: r.parameters / 1e3), ("MFLOP per image", lambda r: r.flops / 1e6),
        ("training images/s", lambda r: r.train_ips), ("reading images/s", lambda r: r.infer_ips),
    )  # fmt: skip
    for axis, (title, value) in zip(figure.subplots(1, len(panels), sharey=True), panels):
        for number, result in enumerate(results):
            if result.acc is not None:
                point = (value(result), 100 * result.acc)
                axis.plot(*point, "o", color=f"C{number % 10}")
                axis.annotate(result.name.removesuffix("_tiny"), point, fontsize=6, xytext=(3, 3),
                              textcoords="offset points")  # fmt: skip
        axis.set_xlabel(title, fontsize=9)
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("accuracy on held-out words, %", fontsize=9)
