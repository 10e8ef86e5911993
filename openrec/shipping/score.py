"""Score a recogniser on every word of a set, in total and by script; time it on a few cores."""

from __future__ import annotations

import os
import platform
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein

from openrec import __version__
from openrec.engine.latency import measure
from openrec.metrics.interval import wilson
from openrec.recognizer import Recognizer
from openrec.shipping.wordsets import WordSet, script_of

RULE = "letters and digits of any script, case folded; a label without any is compared as it stands"


@dataclass
class Score:
    """One row of a table.

    Attributes:
        words: all of them, also unreadable ones and those with characters that the model does not know (``unknown``).
        correct: equal under ``RULE``; exact: equal to the character, spaces aside.
        similarity: 1 - mean edit distance under ``RULE``, divided by the longer length.
        low, high: 95 % Wilson interval of ``correct / words``.
    """

    set: str
    script: str
    words: int = 0
    correct: int = 0
    exact: int = 0
    unknown: int = 0
    similarity: float = 0.0
    low: float = 0.0
    high: float = 1.0

    @property
    def accuracy(self) -> float:
        return self.correct / self.words if self.words else 0.0


def folded(text: str) -> str:
    """What ``RULE`` compares."""
    text = unicodedata.normalize("NFC", text)
    kept = "".join(c for c in text if unicodedata.category(c)[0] in "LMN").casefold()
    return kept or "".join(text.split())


def score(recognizer: Recognizer, words: WordSet, batch_size: int = 32) -> tuple[list[Score], list[dict[str, str]]]:
    """A row for the whole set and, where there are several, one per script; and what was misread."""
    read = [t.text for t in recognizer([w.image for w in words.words], batch_size)]
    rows: dict[str, Score] = {}
    wrong = []
    for word, text in zip(words.words, read, strict=True):
        label = word.text
        one, other = folded(text), folded(label)
        if one != other:
            wrong.append({"name": word.name, "label": label, "read": text})
        for script in ("all", script_of(label)):
            row = rows.setdefault(script, Score(words.name, script))
            row.words += 1
            row.correct += one == other
            row.exact += "".join(text.split()) == "".join(label.split())
            row.unknown += bool(recognizer.charset.unknown("".join(label.split())))
            row.similarity += 1 - Levenshtein.normalized_distance(one, other)
    for row in rows.values():
        row.similarity = round(row.similarity / row.words, 4)
        row.low, row.high = (round(x, 4) for x in wilson(row.correct, row.words))
    scripts = [rows[s] for s in sorted(rows) if s != "all"]
    return [rows["all"], *(scripts if len(scripts) > 1 else [])], wrong


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def speed(recognizer: Recognizer, threads: int = 2, batches: Sequence[int] = (1, 32)) -> dict[str, Any]:
    """Images per second of the model (array to predictions) in batches of each size, at a width of four heights."""
    size = min(recognizer.preprocess.shapes(), key=lambda s: abs(s[0] / s[1] - 4))
    with _threads(threads):
        rows = measure(recognizer.backend.run, [size], batches)
    return {
        "size": list(size),
        "threads": threads, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1), "machine": cpu_name(),
        "batches": {
            str(r.batch): {
                "ms": round(r.median, 2),
                "fastest_ms": round(r.best, 2),
                "images_per_second": round(1000 / r.per_image, 1),
            }
            for r in rows
        },
    }  # fmt: skip


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def evaluate(recognizer: Recognizer, sets: Sequence[WordSet]) -> dict[str, Any]:
    """Every set's rows as plain types, with how they were made."""
    about = {
        "date": time.strftime("%Y-%m-%d"), "openrec": __version__, "torch": str(torch.__version__),
        "python": platform.python_version(), "rule": RULE,
    }  # fmt: skip
    result: dict[str, Any] = {**about, "sets": []}
    for words in sets:
        rows, wrong = score(recognizer, words)
        rows_out = [asdict(row) | {"accuracy": round(row.accuracy, 4)} for row in rows]
        result["sets"].append({"name": words.name, "about": words.about, "rows": rows_out, "wrong": wrong[:20]})
    return result


def tables(evaluation: dict[str, Any]) -> list[str]:
    """Markdown: one table per set, one line per script."""
    lines = []
    for one in evaluation["sets"]:
        lines += [
            f"**{one['name']}** ({one['about']})", "",
            "| script | words | read correctly | accuracy | 95 % | to the character | 1-NED | unknown letters |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]  # fmt: skip
        lines += [
            f"| {r['script']} | {r['words']} | {r['correct']} | {100 * r['accuracy']:.1f} % | "
            f"{100 * r['low']:.1f}-{100 * r['high']:.1f} | {r['exact']} | {r['similarity']:.3f} | {r['unknown']} |"
            for r in one["rows"]
        ]
        lines.append("")
    return lines
