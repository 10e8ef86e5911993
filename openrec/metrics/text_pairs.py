"""How a predicted and a true text are compared, and sums that can be added up over processes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rapidfuzz.distance import Levenshtein

EPS = 1e-5  # in every denominator, as in OpenOCR: a perfect accuracy reads 0.99999...
_SYMBOLS = re.compile(r"[^0-9A-Za-z]")


def strip_symbols(text: str) -> str:
    """Only ``[0-9A-Za-z]``."""
    return _SYMBOLS.sub("", text)


def distance(prediction: str, target: str) -> float:
    """Edits divided by the longer length, 0 to 1; 0 for two empty texts."""
    return Levenshtein.normalized_distance(prediction, target)


def share(part: float, whole: float) -> float:
    return part / (whole + EPS)


def similarity(distances: float, count: float) -> float:
    """1 - mean distance."""
    return 1 - share(distances, count)


def merge_windows(texts: Sequence[str]) -> str:
    """One text from the readings of overlapping windows of a line, left to right.

    Characters at a cut are dropped (the first of every window but the first, the last of every window but the
    last); then each window is joined where its beginning repeats the end of what stands already.
    """
    last = len(texts) - 1
    merged = ""
    for i, text in enumerate(texts):
        part = text[1 if i else 0 : len(text) - 1 if i < last else len(text)]
        overlap = next((k for k in range(min(len(merged), len(part)), 0, -1) if merged.endswith(part[:k])), 0)
        merged += part[overlap:]
    return merged


class Sums:
    """Named numbers and lists of numbers that start at 0 and are added to."""

    def __init__(self, numbers: Sequence[str], lists: dict[str, int] | None = None):
        self._numbers, self._lists = tuple(numbers), dict(lists or {})
        self.reset()

    def reset(self) -> None:
        """Set all to 0."""
        self.values: dict[str, Any] = dict.fromkeys(self._numbers, 0)
        self.values.update({name: [0] * length for name, length in self._lists.items()})

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def add(self, name: str, amount: float = 1) -> None:
        self.values[name] += amount

    def add_at(self, name: str, slot: int, amount: float = 1) -> None:
        self.values[name][slot] += amount

    def state(self) -> dict[str, Any]:
        """A copy in plain types."""
        return {k: list(v) if isinstance(v, list) else v for k, v in self.values.items()}

    def merge(self, state: dict[str, Any]) -> None:
        """Add the ``state()`` of another process."""
        for name, value in state.items():
            mine = self.values[name]
            self.values[name] = [a + b for a, b in zip(mine, value)] if isinstance(value, list) else mine + value
