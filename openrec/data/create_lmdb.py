"""Writing and checking LMDB data sets: ``LmdbWriter``, ``convert`` and ``check``.

The layout is OpenOCR's (see ``lmdb_env``). A data set is written beside its final place and renamed
when it is complete, so that an interrupted or failed run leaves nothing that looks like data.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from tqdm import tqdm

from openrec.data.annotations import Annotation, read_annotations
from openrec.data.lmdb_env import LmdbReader, close
from openrec.data.report import count_reason, reason_lines
from openrec.errors import DataError, SampleError
from openrec.preprocess.decode import UnreadableImage, decode_rgb

FLUSH_RECORDS, FLUSH_BYTES = 1000, 16 << 20
FIRST_MAP_SIZE = 64 << 20


class LmdbWriter:
    """Context manager that writes one LMDB data set.

    Args:
        path: the directory to make. It must not exist, or be empty, unless ``overwrite``.
        overwrite: replace an LMDB that is there, once the new one is complete.

    Raises:
        DataError: ``path`` is occupied, or the disk is full; nothing is left behind then.
    """

    def __init__(self, path: str | os.PathLike, overwrite: bool = False) -> None:
        self.path = Path(path).expanduser()
        self.overwrite = overwrite
        self.count = 0
        self._work = self.path.absolute().with_name(f".{self.path.absolute().name}.partial-{os.getpid()}")
        self._buffer: list[tuple[bytes, bytes]] = []
        self._bytes = 0
        self._env: Any = None

    def __enter__(self) -> LmdbWriter:
        self._check_place()
        try:
            shutil.rmtree(self._work, ignore_errors=True)
            self._work.mkdir(parents=True)
            self._env = lmdb.open(str(self._work), map_size=FIRST_MAP_SIZE, metasync=False, sync=False)
        except (lmdb.Error, OSError) as error:
            shutil.rmtree(self._work, ignore_errors=True)
            raise self._failure(error) from error
        return self

    def _check_place(self) -> None:
        if not self.path.exists():
            return
        inside = sorted(p.name for p in self.path.iterdir()) if self.path.is_dir() else None
        if inside is None:
            raise DataError(f'"{self.path}" is a file. Expected a directory that does not exist yet.')
        if inside and not self.overwrite:
            raise DataError(
                f'"{self.path}" exists and holds {", ".join(inside[:5])}. Choose another directory, or say --overwrite '
                "to replace it."
            )
        if set(inside) - {"data.mdb", "lock.mdb"}:
            raise DataError(f'"{self.path}" holds more than an LMDB ({", ".join(inside[:5])}); it is left as it is.')

    def put(self, image_bytes: bytes, label: str, width: int, height: int) -> int:
        """Add one sample; returns its number, from 1.

        Args:
            image_bytes: the encoded image file.
            label: its text.
            width, height: px.
        """
        self.count += 1
        self._buffer.append((b"image-%09d" % self.count, image_bytes))
        self._buffer.append((b"label-%09d" % self.count, label.encode("utf-8")))
        self._buffer.append((b"wh-%09d" % self.count, b"%d_%d" % (width, height)))
        self._bytes += len(image_bytes)
        if len(self._buffer) >= 3 * FLUSH_RECORDS or self._bytes >= FLUSH_BYTES:
            self._flush()
        return self.count

    def _flush(self) -> None:
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for key, value in self._buffer:
                        transaction.put(key, value)
                break
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            except (lmdb.Error, OSError) as error:
                raise self._failure(error) from error
        self._buffer, self._bytes = [], 0

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._env is not None:
                self._env.close()
            shutil.rmtree(self._work, ignore_errors=True)

    def _finish(self) -> None:
        self._buffer.append((b"num-samples", b"%d" % self.count))  # last: its absence means unfinished
        self._flush()
        try:
            self._env.sync(True)
            self._env.close()
            self._env = None
            (self._work / "lock.mdb").unlink(missing_ok=True)
            close(str(self.path))
            old = self._work.with_name(self._work.name + "-old")
            if self.path.exists():
                self.path.rename(old)
            self._work.rename(self.path)
            shutil.rmtree(old, ignore_errors=True)
        except (lmdb.Error, OSError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> DataError:
        parent = next(p for p in self._work.parents if p.exists())
        free = shutil.disk_usage(parent).free >> 20
        return DataError(
            f'writing "{self.path}" failed after {self.count} samples: {error} ({free} MiB free there). Nothing was '
            "kept. Make room, check the permissions, or choose another directory."
        )


@dataclass
class Outcome:
    """Result of ``convert`` and ``check``: counts, and reasons as in ``DataReport``."""

    found: int = 0
    good: int = 0
    problems: dict[str, list] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)

    def add(self, reason: str, name: str, label: str = "") -> None:
        count_reason(self.problems, reason, name, label)

    def __str__(self) -> str:
        lines = [f"{self.found} records, {self.good} good, {sum(c for c, _ in self.problems.values())} problems"]
        return "\n".join(lines + [f"  {line}" for line in reason_lines(self.problems) + self.facts])


def convert(
    image_dir: str | os.PathLike,
    label_file: str | os.PathLike,
    output: str | os.PathLike,
    *,
    file_format: str | None = None,
    max_len: int = 800,
    overwrite: bool = False,
    progress: bool = True,
) -> Outcome:
    """Make an LMDB of the images that a label file names.

    Args:
        image_dir: root of the relative paths in ``label_file``.
        file_format: see ``annotations.read_annotations``.
        max_len: longest label, in characters.
        progress: show a bar.

    Returns:
        Counts; every line that was left out, by reason with examples.

    Raises:
        DataError: label file missing, not one usable line, ``output`` occupied, disk full.
    """
    root, outcome = Path(image_dir).expanduser(), Outcome()
    annotations = read_annotations(label_file, file_format)
    with LmdbWriter(output, overwrite) as writer:
        for annotation in tqdm(annotations, desc="images", unit="img", disable=None if progress else True):
            outcome.found += 1
            try:
                data, width, height = _load(root, annotation, max_len)
            except SampleError as error:
                outcome.add(str(error), f"line {annotation.line} {annotation.path}".rstrip(), annotation.label)
                continue
            writer.put(data, annotation.label, width, height)
        outcome.good = writer.count
        if not writer.count:
            raise DataError(
                f'"{label_file}" gives no usable sample, nothing was written.\n{outcome}\nExpected lines '
                f'"path<TAB>label" with paths relative to "{root}".'
            )
    return outcome


def _load(root: Path, annotation: Annotation, max_len: int) -> tuple[bytes, int, int]:
    if annotation.problem:
        raise SampleError(annotation.problem)
    if not annotation.label:
        raise SampleError("label is empty")
    if len(annotation.label) > max_len:
        raise SampleError(f"label is longer than {max_len} characters")
    try:
        data = (root / annotation.path).read_bytes()
    except OSError as error:
        raise SampleError(f"image file cannot be read ({error.strerror})") from error
    height, width = decode_rgb(data).shape[:2]
    return data, width, height


def check(path: str | os.PathLike, progress: bool = True) -> Outcome:
    """Read every record of an LMDB: keys, images, sizes, labels, and the count.

    Raises:
        DataError: not an LMDB, or without ``num-samples``.
    """
    reader, outcome = LmdbReader(path), Outcome()
    n = outcome.found = reader.num_samples()
    ratios, lengths = [], []
    for number in tqdm(range(1, n + 1), desc="records", unit="img", disable=None if progress else True):
        problems, ratio, length = _check_record(reader, number)
        outcome.good += not problems
        for reason in problems:
            outcome.add(reason, f"image-{number:09d}")
        if not problems:
            ratios.append(ratio)
            lengths.append(length)
    for kind in ("image", "label", "wh"):
        stale = sum(1 for number in reader.numbers(kind) if not 0 < number <= n)
        if stale:
            outcome.add("keys beyond num-samples", f"{stale} {kind}- keys")
    if ratios:
        outcome.facts.append(
            f"width / height: {np.min(ratios):.2f} to {np.max(ratios):.2f}, mean {np.mean(ratios):.2f}"
        )
        outcome.facts.append(f"label length: {min(lengths)} to {max(lengths)}, mean {np.mean(lengths):.1f}")
    reader.close()
    return outcome


def _check_record(reader: LmdbReader, number: int) -> tuple[list[str], float, int]:
    """``(problems, width / height, label length)``."""
    problems, ratio, text = [], 0.0, ""
    image, label, size = reader.image(number), reader.label(number), reader.get(b"wh-%09d" % number)
    if label is None:
        problems.append("label key is missing")
    else:
        try:
            text = label.decode("utf-8")
            problems += [] if text else ["label is empty"]
        except UnicodeDecodeError:
            problems.append("label is not UTF-8")
    if image is None:
        return problems + ["image key is missing"], ratio, len(text)
    try:
        height, width = decode_rgb(image).shape[:2]
        ratio = width / height
        if size is not None and size != b"%d_%d" % (width, height):
            problems.append("wh key differs from the image")
    except UnreadableImage as error:
        problems.append(str(error))
    return problems, ratio, len(text)
