"""Files of results: OpenOCR's text lines, JSON lines, CSV. Rows are written as they come."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from openrec.errors import ConfigError

RESULTS = "rec_results/rec_results.txt"  # where OpenOCR writes them, under the working directory
FORMATS = ("txt", "jsonl", "csv")
_COLUMNS = ("name", "text", "score", "char_scores", "char_x", "width", "height", "error")


def format_of(path: str | Path, wanted: str | None = None) -> str:
    """``wanted``, or what the file's ending says: .jsonl / .json, .csv, else text.

    Raises:
        ConfigError: another format.
    """
    if wanted is None:
        return {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv"}.get(Path(path).suffix.lower(), "txt")
    if wanted not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {wanted!r}.")
    return wanted


class ResultFile:
    """Writes results, one row each.

    * ``txt``: ``path<TAB>text<TAB>score`` (OpenOCR's ``rec_results.txt``); a picture that could not be read has an
      empty text and the score 0;
    * ``jsonl``: one object a line, with everything that ``Text`` holds;
    * ``csv``: one row, lists as JSON, with a header.

    UTF-8; the directory is made. Used in a ``with`` block.
    """

    def __init__(self, path: str | Path, file_format: str | None = None) -> None:
        self.path, self.format = Path(path), format_of(path, file_format)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w", encoding="utf-8", newline="" if self.format == "csv" else "\n")
        except OSError as error:
            raise ConfigError(f'cannot write "{self.path}" ({error.strerror}). Choose another --output.') from error
        if self.format == "csv":
            self._csv = csv.writer(self._file)
            self._csv.writerow(_COLUMNS)

    def write(self, text: Any) -> None:
        """Add one ``Text``."""
        if self.format == "jsonl":
            row = {k: v for k, v in text.as_dict().items() if k != "seconds" and (k != "char_boxes" or v is not None)}
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        elif self.format == "csv":
            width, height = text.size or ("", "")
            lists = [json.dumps(text.char_scores), json.dumps(text.char_x)]
            self._csv.writerow([text.name, text.text, text.score, *lists, width, height, text.error or ""])
        else:
            # OpenOCR's lines have three fields; a tab or line break inside one would make others of them
            fields = [" ".join(str(f).splitlines()).replace("\t", " ") for f in (text.name, text.text, text.score)]
            self._file.write("\t".join(fields) + "\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def in_order(results: Iterable[tuple[int, Any]]) -> Iterable[Any]:
    """Results by position, each as soon as all before it are there."""
    waiting: dict[int, Any] = {}
    following = 0
    for position, result in results:
        waiting[position] = result
        while following in waiting:
            yield waiting.pop(following)
            following += 1
