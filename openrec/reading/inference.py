"""What ``tools/infer_rec.py`` does: read many pictures, show each line, write the result file and the page.

Line format, result file and the two lists by text length are those of OpenOCR's tool of that name
(https://github.com/Topdu/OpenOCR, Apache-2.0).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tqdm import tqdm

from openrec.data.annotations import read_annotations
from openrec.errors import DataError
from openrec.reading.inputs import MAX_PIXELS, Source, sources
from openrec.reading.outputs import RESULTS, ResultFile, in_order
from openrec.reading.page import ResultPage


class Tally:
    """Counts and times of a run."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.read = 0
        self.failed: list[Any] = []
        self.model_seconds = 0.0
        self.by_length: dict[int, tuple[int, float]] = {}

    def add(self, text: Any) -> None:
        if text.error is not None:
            self.failed.append(text)
            return
        self.read += 1
        self.model_seconds += text.seconds
        count, seconds = self.by_length.get(len(text.text), (0, 0.0))
        self.by_length[len(text.text)] = (count + 1, seconds + text.seconds)

    def lines(self) -> list[str]:
        """The end of the report."""
        whole, n = time.perf_counter() - self.start, max(1, self.read)
        lengths = range(max(self.by_length, default=-1) + 1)
        pairs = [self.by_length.get(length, (0, 0.0)) for length in lengths]
        lines = [
            f"{self.read} pictures read, {len(self.failed)} could not be read; {whole:.2f} s in all, "
            f"{1000 * whole / n:.2f} ms a picture with decoding, {1000 * self.model_seconds / n:.2f} ms of the model",
            f"texts by length from 0: {[count for count, _ in pairs]}",
            f"mean model time by length in ms: {[round(1000 * s / max(1, c), 3) for c, s in pairs]}",
        ]
        lines += [f"not read: {text.name}: {text.error}" for text in self.failed[:20]]
        if len(self.failed) > 20:
            lines.append(
                f"not read: {len(self.failed) - 20} more, see the result file (.jsonl and .csv hold the reason)"
            )
        return lines


def truths_of(file: str | Path, names: Iterable[str]) -> dict[str, str]:
    """The true text by name of the picture: a label file's paths are ends of the names."""
    labels = {os.path.normpath(a.path): a.label for a in read_annotations(file) if a.problem is None}
    found = {}
    for name in names:
        parts = os.path.normpath(name).split(os.sep)
        for depth in range(len(parts)):
            label = labels.get(os.sep.join(parts[depth:]))
            if label is not None:
                found[name] = label
                break
    if not found:
        raise DataError(f'"{file}" names none of the pictures; its paths must be the ends of theirs.')
    return found


def read_to_files(
    recognizer: Any,
    images: Any,
    output: str | Path = RESULTS,
    *,
    file_format: str | None = None,
    page: str | Path | None = None,
    labels: str | Path | None = None,
    batch_size: int = 32,
    workers: int = 0,
    max_pixels: int = MAX_PIXELS,
    show: bool = True,
    bar: bool | None = None,
    each: Callable[[Source], Any] | None = None,
) -> Tally:
    """Read ``images`` and write the results in their order.

    Args:
        output: result file, see ``ResultFile``; ``file_format`` as there.
        page: HTML page of results.
        labels: label file with the true texts, shown on the page where they differ.
        show: print a line for each picture.
        bar: progress bar on stderr; None: where that is a terminal.
        each: called with each picture after it was read.
    """
    names = sources(images)
    truths: Mapping[str, str] = truths_of(labels, [s.name for s in names]) if labels else {}
    tally = Tally()
    bar = sys.stderr.isatty() if bar is None else bar
    with ExitStack() as stack:
        file = stack.enter_context(ResultFile(output, file_format))
        html = None
        if page is not None:
            subtitle = f"{recognizer.name}, {recognizer.backend.name}, {len(recognizer.charset)} characters"
            html = stack.enter_context(ResultPage(page, "What was read", subtitle, truths))
        progress = stack.enter_context(tqdm(total=len(names), desc="read", unit="img", disable=not bar, leave=False))
        results = recognizer.read(names, batch_size, workers=workers, max_pixels=max_pixels)
        for number, text in enumerate(in_order(results)):
            file.write(text)
            tally.add(text)
            progress.update()
            if html is not None:
                html.add(text, names[number])
            if each is not None:
                each(names[number])
            if show:
                tqdm.write(_line(number, text), file=sys.stdout)
    return tally


def _line(number: int, text: Any) -> str:
    if text.error is not None:
        return f"{number} {text.name}\t not read: {text.error}"
    return f"{number} {text.name}\t result: {text.text}\t{text.score}, time cost: {text.seconds:.6f}"
