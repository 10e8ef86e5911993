"""What a data set found, what it uses, and what it leaves out and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

EXAMPLES = 3  # kept per reason


@dataclass
class SourceReport:
    """One LMDB directory or label file."""

    name: str
    found: int = 0
    used: int = 0


@dataclass
class DataReport:
    """Counts of a data set; reasons map to ``[count, first examples "name: label"]``.

    Attributes:
        found: records in all sources.
        used: records the data set can serve in one epoch.
        skipped: training records left out at construction.
        excluded: evaluation records that are served and scored, but which OpenOCR would have left
            out or replaced.
        unknown: characters that labels hold and the charset lacks; they are dropped from the
            encoded label, as in OpenOCR.
        sources: the same counts per source.
        notes: other facts worth a line in the startup summary.
        names: every record that ``skipped`` or ``excluded`` counts, ``{reason: [name, ...]}``.
    """

    found: int = 0
    used: int = 0
    skipped: dict[str, list] = field(default_factory=dict)
    excluded: dict[str, list] = field(default_factory=dict)
    unknown: Counter = field(default_factory=Counter)
    sources: list[SourceReport] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, reason: str, name: str, label: str = "") -> None:
        """Count a training record that is left out."""
        count_reason(self.skipped, reason, name, label)
        self.names.setdefault(reason, []).append(name)

    def exclude(self, reason: str, name: str, label: str = "") -> None:
        """Count an evaluation record that OpenOCR's rule would not score."""
        count_reason(self.excluded, reason, name, label)
        self.names.setdefault(reason, []).append(name)

    @property
    def n_skipped(self) -> int:
        return sum(entry[0] for entry in self.skipped.values())

    @property
    def n_excluded(self) -> int:
        return sum(entry[0] for entry in self.excluded.values())

    def lines(self) -> list[str]:
        """The report as lines for a log."""
        lines = [f"{self.found} samples found, {self.used} used, {self.n_skipped} skipped"]
        for source in self.sources:
            lines.append(f"  {source.name}: {source.found} found, {source.used} used")
        lines += [f"  skipped: {line}" for line in reason_lines(self.skipped)]
        lines += [f"  scored, but not under OpenOCR's rule: {line}" for line in reason_lines(self.excluded)]
        if self.unknown:
            shown = ", ".join(f"{c!r} ({n})" for c, n in self.unknown.most_common(12))
            lines.append(f"  characters outside the dictionary, dropped from labels: {shown}")
        return lines + [f"  {note}" for note in self.notes]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def count_reason(table: dict[str, list], reason: str, name: str, label: str = "") -> None:
    """Add one case to a ``{reason: [count, examples]}`` table."""
    entry = table.setdefault(reason, [0, []])
    entry[0] += 1
    if len(entry[1]) < EXAMPLES:
        shown = label if len(label) <= 60 else label[:57] + "..."
        entry[1].append(f"{name}: {shown}" if shown else name)


def reason_lines(table: dict[str, list]) -> list[str]:
    """One line a reason, the most frequent first: ``"12 x label is empty (e.g. ...)"``."""
    ordered = sorted(table.items(), key=lambda item: -item[1][0])
    return [f"{count} x {reason} (e.g. {'; '.join(examples)})" for reason, (count, examples) in ordered]
