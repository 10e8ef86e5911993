"""What a comparison writes: ``table.md`` and ``table.csv``."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from openrec.compare.pictures import pictures
from openrec.compare.systems import Result


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


# heading, text of a result
_COLUMNS: list[tuple[str, Callable[[Result], str]]] = [
    ("system", lambda r: r.name),
    ("accuracy %", lambda r: _percent(r.acc)),
    ("1-NED %", lambda r: _percent(r.norm_edit_dis)),
    ("real words: accuracy %", lambda r: _percent(r.real_acc)),
    ("real words: 1-NED %", lambda r: _percent(r.real_norm_edit_dis)),
    ("of words it can spell: accuracy %", lambda r: _percent(r.real_fit_acc)),
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
        + (f" and on {first.real_samples} real words ({_sets(first)})" if first.real_samples else "") + ".",
        "Speeds without data, batch " + "/".join(sorted({str(r.batch_size) for r in ordered}))
        + f" in training and {first.infer_batch} in reading; " + "; ".join(sorted({r.machine for r in ordered})) + ".",
    ]  # fmt: skip
    if len({r.data for r in ordered}) > 1:
        lines.append("**The systems did not train on the same data**: their Train sections differ beyond the labels.")
    if command:
        lines.append(f"Command: `{command}`")
    lines += ["", "| " + " | ".join(c[0] for c in shown) + " |", "|---" + "|---:" * (len(shown) - 1) + "|"]
    lines += ["| " + " | ".join(c[1](r) for c in shown) + " |" for r in ordered]
    return "\n".join(lines) + "\n"


def _sets(result: Result) -> str:
    """``easyocr 12, receipts 30; 28 within dictionary and length``."""
    sets = ", ".join(f"{name} {numbers['samples']}" for name, numbers in result.real_sets.items())
    return f"{sets}; {result.real_fit_samples} within dictionary and length"


def write_csv(results: Sequence[Result], path: Path) -> None:
    """All numbers in full, one row a system."""
    rows = [{k: v for k, v in asdict(r).items() if k not in ("conditions", "data", "real_sets")} for r in results]
    for row, result in zip(rows, results):
        for name, numbers in result.real_sets.items():
            row |= {f"{name}: {key}": value for key, value in numbers.items()}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_all(results: Sequence[Result], output: Path, command: str = "") -> list[Path]:
    """Table, CSV and pictures (those only where matplotlib is installed) of the finished systems."""
    text, data = output / "table.md", output / "table.csv"
    text.write_text(markdown(results, command), encoding="utf-8")
    write_csv(results, data)
    return [text, data, *pictures(results, output)]
