"""Label files: which image has which text, in the formats that people have.

* ``list``: ``path<TAB>label`` lines, or OpenOCR's form with a space after ``.jpg`` / ``.png``;
* ``csv``: comma separated, with or without a header;
* ``jsonl``: one JSON object or ``[path, label]`` pair a line.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from openrec.data.lmdb_env import nearest_existing
from openrec.errors import DataError

FORMATS = ("list", "csv", "jsonl")
PATH_NAMES = ("image", "path", "file", "filename", "file_name", "image_path", "img", "img_path", "image_file")
LABEL_NAMES = ("label", "text", "words", "word", "gt", "transcription")
_SPACED = re.compile(r"^(.+?\.(?:jpe?g|png|bmp|gif|webp|tiff?))\s+(.*)$", re.IGNORECASE)


class Annotation(NamedTuple):
    """One line of a label file; ``problem`` says why it cannot be used."""

    line: int
    path: str
    label: str
    problem: str | None = None


def read_annotations(file: str | os.PathLike, file_format: str | None = None) -> list[Annotation]:
    """All lines that are not blank.

    Args:
        file_format: one of ``FORMATS``; None decides by the ending (.csv, .jsonl, .json, else list).

    Raises:
        DataError: the file cannot be read.
    """
    file = Path(file).expanduser()
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f'label file "{file}" cannot be read ({error.strerror}). {nearest_existing(file)}') from error
    if file_format is None:
        file_format = {".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl"}.get(file.suffix.lower(), "list")
    if file_format not in FORMATS:
        raise DataError(f"format: expected one of {', '.join(FORMATS)}, got {file_format!r}.")
    lines, broken = [], []
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = raw.decode("utf-8").rstrip("\r")
            if text.strip():
                lines.append((number, text))
        except UnicodeDecodeError:
            broken.append(Annotation(number, "", repr(raw[:40]), "line is not UTF-8"))
    read = {"list": _read_list, "csv": _read_csv, "jsonl": _read_jsonl}[file_format]
    return sorted(read(lines) + broken)


def _read_list(lines: Sequence[tuple[int, str]]) -> list[Annotation]:
    tabs = Counter(text.count("\t") for _, text in lines)
    # A file whose lines mostly have several tabs is a table with more columns; otherwise a second
    # tab belongs to the label.
    is_table = bool(tabs) and tabs.most_common(1)[0][0] > 1
    found = []
    for number, text in lines:
        path, tab, label = text.partition("\t")
        if not tab:
            match = _SPACED.match(text)
            if match is None:
                found.append(Annotation(number, text, "", "line has no tab between path and label"))
                continue
            path, label = match.groups()
        elif is_table:
            label = label.split("\t")[0]
        if number == lines[0][0] and path.lower() in PATH_NAMES and label.lower() in LABEL_NAMES:
            continue  # a header
        found.append(Annotation(number, path.strip(), label))
    return found


def _read_csv(lines: Sequence[tuple[int, str]]) -> list[Annotation]:
    reader = csv.reader([text + "\n" for _, text in lines])
    found, path_at, label_at, first = [], 0, 1, True
    for row in reader:
        number = lines[min(reader.line_num, len(lines)) - 1][0]
        names = [cell.strip().lower() for cell in row]
        header_path = next((names.index(n) for n in PATH_NAMES if n in names), None)
        header_label = next((names.index(n) for n in LABEL_NAMES if n in names), None)
        if first and header_path is not None and header_label is not None:
            path_at, label_at = header_path, header_label
        elif len(row) <= max(path_at, label_at):
            found.append(Annotation(number, row[0] if row else "", "", "line has too few columns"))
        else:
            found.append(Annotation(number, row[path_at].strip(), row[label_at]))
        first = False
    return found


def _read_jsonl(lines: Sequence[tuple[int, str]]) -> list[Annotation]:
    found = []
    for number, text in lines:
        try:
            entry = json.loads(text)
        except ValueError:
            found.append(Annotation(number, "", text[:40], "line is not JSON"))
            continue
        path = label = None
        if isinstance(entry, dict):
            path = next((entry[n] for n in PATH_NAMES if n in entry), None)
            label = next((entry[n] for n in LABEL_NAMES if n in entry), None)
        elif isinstance(entry, list) and len(entry) >= 2:
            path, label = entry[:2]
        if isinstance(path, str) and isinstance(label, str):
            found.append(Annotation(number, path, label))
        else:
            keys = f"{PATH_NAMES[0]} and {LABEL_NAMES[0]}"
            found.append(Annotation(number, "", text[:40], f"line has no text values for {keys}"))
    return found
