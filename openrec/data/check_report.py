"""The findings of ``openrec.data.check`` as text, tables and pictures."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openrec.data.check import Advice, Pair, SetReport
from openrec.data.report import reason_lines
from openrec.errors import writing

logger = logging.getLogger("openrec")


@dataclass
class Findings:
    """Everything that was found.

    Attributes:
        train, test: the sets.
        doubles: pictures that occur twice, by set name; leaks: of a training set in a test set.
        advice: settings.
    """

    train: list[SetReport]
    test: list[SetReport]
    doubles: dict[str, list[Pair]] = field(default_factory=dict)
    leaks: dict[str, list[Pair]] = field(default_factory=dict)
    advice: Advice | None = None

    @property
    def clean(self) -> bool:
        return not (self.leaks or self.doubles or any(r.problems for r in [*self.train, *self.test]))

    def lines(self) -> list[str]:
        """The report for a terminal."""
        lines: list[str] = []
        for kind, reports in (("training", self.train), ("test", self.test)):
            for report in reports:
                lines += _set_lines(kind, report, self.doubles.get(report.name, []))
        for name, pairs in self.leaks.items():
            lines.append(f"LEAK {name}: {len(pairs)} pictures are in both; leave them out of training")
            lines += [f"  {_pair(p)}" for p in pairs[:3]]
        if any(r.seen for r in self.train) and any(r.seen for r in self.test) and not self.leaks:
            lines.append("no picture of a training set is in a test set")
        return lines + (_advice_lines(self.advice) if self.advice else [])


def _set_lines(kind: str, report: SetReport, doubles: Sequence[Pair]) -> list[str]:
    lines = [f"{kind} {report.name}: {report.records} records, {report.good} without a problem"]
    lines += [f"  {line}" for line in reason_lines(report.problems)]
    if report.unknown:
        shown = ", ".join(f"{c!r} ({n})" for c, n in report.unknown.most_common(15))
        lines.append(f"  outside the dictionary: {len(report.unknown)} characters: {shown}")
    conflicts = [p for p in doubles if p.same and p.first.label != p.second.label]
    if doubles:
        lines.append(f"  {len(doubles)} pictures occur twice (e.g. {_pair(doubles[0])})")
    if conflicts:
        lines.append(f"  {len(conflicts)} of them with two labels (e.g. {_pair(conflicts[0])})")
    if report.seen:
        r, n = report.ratios, report.lengths
        lines.append(
            f"  width / height {r.min():.2f} to {r.max():.2f}, median {np.median(r):.2f}; "
            f"label length {n.min()} to {n.max()}, median {np.median(n):.0f}"
        )
    return lines


def _pair(pair: Pair) -> str:
    how = "equal" if pair.same else "alike"
    return f"{pair.first.name} ({pair.first.label!r}) and {pair.second.name} ({pair.second.label!r}), {how}"


def _advice_lines(advice: Advice) -> list[str]:
    rare = f", {len(advice.rare)} of them fewer than five times" if advice.rare else ""
    return [
        f"suggested dictionary: {len(advice.characters)} characters{rare}; use_space_char: {advice.use_space_char}",
        f"suggested max_text_length: {advice.max_text_length}, loader.max_ratio: {advice.max_ratio}",
    ]


def write(findings: Findings, folder: str | Path) -> list[str]:
    """Report, table of problems, dictionary and histograms into ``folder``; the names of the files."""
    folder = Path(folder)
    with writing(folder, "Choose another --out."):
        folder.mkdir(parents=True, exist_ok=True)
    reports = [*findings.train, *findings.test]
    files = {
        "report.txt": "\n".join(findings.lines()) + "\n",
        "report.json": json.dumps(_plain(findings), ensure_ascii=False, indent=1),
        "problems.tsv": "".join(
            f"{_cell(n)}\t{r}\t{_cell(t)}\n" for s in reports for n, r, t in s.rows + _twice(s, findings)
        ),
    }
    if findings.advice and findings.advice.characters:
        files["dictionary.txt"] = "".join(c + "\n" for c in findings.advice.characters)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*files, *_pictures(reports, folder)]


def _twice(report: SetReport, findings: Findings) -> list[tuple[str, str, str]]:
    rows = [
        (p.second.name, f"occurs twice: {p.first.name}", p.second.label) for p in findings.doubles.get(report.name, [])
    ]
    for name, pairs in findings.leaks.items():
        if name.endswith(f" and {report.name}"):
            rows += [(p.second.name, f"is in training: {p.first.name}", p.second.label) for p in pairs]
    return rows


def _cell(text: str) -> str:
    return text.replace("\t", " ").replace("\n", " ").replace("\r", " ")


def _plain(findings: Findings) -> dict[str, Any]:
    def one(report: SetReport) -> dict[str, Any]:
        return {
            "name": report.name, "records": report.records, "good": report.good,
            "problems": {reason: count for reason, (count, _) in report.problems.items()},
            "outside_dictionary": dict(report.unknown.most_common()),
            "characters": dict(report.characters.most_common()),
            "ratio_histogram": _counts(np.rint(report.ratios).astype(int)), "length_histogram": _counts(report.lengths),
            "twice": len(findings.doubles.get(report.name, [])),
        }  # fmt: skip

    return {
        "train": [one(r) for r in findings.train],
        "test": [one(r) for r in findings.test],
        "leaks": {name: len(pairs) for name, pairs in findings.leaks.items()},
        "advice": None if findings.advice is None else vars(findings.advice),
    }


def _counts(values: np.ndarray) -> dict[int, int]:
    numbers, counts = np.unique(values, return_counts=True)
    return dict(zip(numbers.tolist(), counts.tolist()))


def _pictures(reports: Sequence[SetReport], folder: Path) -> list[str]:
    """Histograms; none where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning('no histograms: matplotlib is missing. Install it: pip install "openrec[viz]"')
        return []
    names = []
    for name, title, values in (
        ("ratios.png", "width / height of the pictures", [r.ratios for r in reports]),
        ("lengths.png", "characters per label", [r.lengths for r in reports]),
    ):
        figure = Figure(figsize=(7, 3.2), layout="constrained")
        axes = figure.add_subplot()
        largest = max((float(v.max()) for v in values if len(v)), default=1.0)
        edges: Any = np.arange(0, int(largest) + 2) - (0.5 if name == "lengths.png" else 0)
        edges = edges if len(edges) <= 60 else np.linspace(0, largest, 60)
        for report, v in zip(reports, values):
            weights = np.full(len(v), 100 / max(len(v), 1))
            axes.hist(
                v, edges, weights=weights, histtype="step", linewidth=1.6, label=f"{Path(report.name).name} ({len(v)})"
            )
        axes.set(title=title, ylabel="% of the set", xlim=(0, None))
        axes.grid(alpha=0.3)
        if reports:
            axes.legend(fontsize=8)
        figure.savefig(folder / name, dpi=120)
        names.append(name)
    return names
