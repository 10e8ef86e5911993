"""What is wrong with a data set before anybody trains on it, and what settings it asks for.

Every record of LMDBs or label files is opened once. Pictures are compared by their pixels (equal pictures) and by a
difference hash (the same picture at another size or compression; Zauner, "Implementation and Benchmarking of Perceptual
Image Hash Functions", 2010), within a set and between training and test sets.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from openrec.charset import Charset
from openrec.data.annotations import read_annotations
from openrec.data.lmdb_env import LmdbReader, leaf_environments
from openrec.data.report import count_reason
from openrec.errors import DataError
from openrec.preprocess.decode import UnreadableImage, decode_rgb
from openrec.preprocess.geometry import bucket, bucket_size

MIN_SIDE = 8  # px; smaller pictures hold no readable word
HASH_W, HASH_H = 16, 8
NEAR = 6  # bits of 128 by which two hashes of one picture may differ
CROWD = 64  # hashes that share a part with more others than this say nothing
COLUMN = 4  # px of width per column that a CTC decoder reads
RARE_RATIO = 0.005  # share of pictures that may be wider than max_ratio


class Record(NamedTuple):
    """One picture as it is stored; ``problem``: why it has none."""

    name: str
    image: bytes | None
    label: str | None
    problem: str = ""


class Seen(NamedTuple):
    """What is kept of a picture that could be opened."""

    name: str
    label: str
    width: int
    height: int
    pixels: bytes  # digest
    look: int  # difference hash; 0: too even to have one


@dataclass
class SetReport:
    """One data set.

    Attributes:
        records: found; good: without any problem.
        problems: ``{reason: [count, examples]}``; rows: every problem as ``(name, reason, label)``.
        seen: what could be opened. characters: how often each is in the labels; unknown: those outside the dictionary.
    """

    name: str
    records: int = 0
    good: int = 0
    problems: dict[str, list] = field(default_factory=dict)
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    characters: Counter = field(default_factory=Counter)
    unknown: Counter = field(default_factory=Counter)

    def add(self, reason: str, name: str, label: str = "") -> None:
        count_reason(self.problems, reason, name, label)
        self.rows.append((name, reason, label))

    @property
    def ratios(self) -> np.ndarray:
        """Width / height of every picture that could be opened."""
        return np.array([s.width / s.height for s in self.seen])

    @property
    def lengths(self) -> np.ndarray:
        """Characters of their labels."""
        return np.array([len(s.label) for s in self.seen], int)


class Pair(NamedTuple):
    """Two records that show one picture; ``same``: their pixels are equal."""

    first: Seen
    second: Seen
    same: bool


def records_of(path: str | os.PathLike, images: str | os.PathLike | None = None) -> Iterator[Record]:
    """Records of an LMDB (or of all below a directory), or of a label file.

    Args:
        images: root of the paths in a label file; default: its directory.

    Raises:
        DataError: no such data.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        for leaf in leaf_environments(path):
            yield from _lmdb_records(leaf)
        return
    root = Path(images).expanduser() if images else path.parent
    for line in read_annotations(path):
        if line.problem:
            yield Record(f"{path.name}:{line.line}", None, None, line.problem)
            continue
        try:
            yield Record(line.path, (root / line.path).read_bytes(), line.label)
        except OSError as error:
            yield Record(line.path, None, line.label, f"image file cannot be read ({error.strerror})")


def _lmdb_records(leaf: str) -> Iterator[Record]:
    reader = LmdbReader(leaf)
    try:
        for number in range(1, reader.num_samples() + 1):
            image, raw = reader.image(number), reader.label(number)
            label, problem = None, "label key is missing" if raw is None else ""
            if raw is not None:
                try:
                    label = raw.decode("utf-8")
                except UnicodeDecodeError:
                    problem = "label is not UTF-8"
            yield Record(reader.name(number), image, label, problem or ("" if image else "image key is missing"))
    finally:
        reader.close()


def check_set(
    name: str,
    records: Iterable[Record],
    charset: Charset | None = None,
    max_text_length: int = 25,
    max_ratio: int | None = None,
    workers: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> SetReport:
    """Open every record of a set.

    Args:
        charset: characters the model will read; None: any.
        max_text_length: longest label, in characters.
        max_ratio: of the loader; None: not limited.
        workers: threads that open pictures.
    """
    report = SetReport(name)
    known = None if charset is None else set("".join(charset.characters))
    for record, opened in _opened(records, workers):
        progress()
        report.records += 1
        reasons = [record.problem] if record.problem else []
        if record.label is not None:
            reasons += label_problems(record.label, charset, known, max_text_length, report.unknown)
            report.characters.update(record.label)
        if isinstance(opened, str):
            reasons += [opened] if not record.problem else []
        elif opened is not None:
            seen = Seen(record.name, record.label or "", *opened)
            report.seen.append(seen)
            reasons += picture_problems(seen, max_ratio)
        for reason in dict.fromkeys(reasons):
            report.add(reason, record.name, record.label or "")
        report.good += not reasons
    if not report.records:
        raise DataError(f'"{name}" holds no record at all.')
    return report


def _opened(records: Iterable[Record], workers: int) -> Iterator[tuple[Record, tuple | str | None]]:
    """Each record with what ``_open`` says of its picture, in order."""
    if workers < 1:
        for record in records:
            yield record, _open(record.image)
        return
    with ThreadPoolExecutor(workers, "openrec-check") as pool:
        ahead: deque = deque()
        for record in records:
            ahead.append((record, pool.submit(_open, record.image)))
            if len(ahead) >= 16 * workers:
                first, future = ahead.popleft()
                yield first, future.result()
        for first, future in ahead:
            yield first, future.result()


def _open(data: bytes | None) -> tuple[int, int, bytes, int] | str | None:
    """``(width, height, digest, look)``, or what is wrong."""
    if data is None:
        return None
    try:
        image = decode_rgb(data)
    except UnreadableImage as error:
        return str(error)
    height, width = image.shape[:2]
    if not height or not width:
        return "image has no pixels"
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=12, key=f"{width}x{height}".encode())
    return width, height, digest.digest(), look_of(image)


def look_of(image: np.ndarray) -> int:
    """128 bits: is each of 16 x 8 places brighter than the one left of it? 0 for a picture that is nearly even."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (HASH_W + 1, HASH_H), interpolation=cv2.INTER_AREA).astype(np.int16)
    if small.std() < 4:
        return 0
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def label_problems(
    label: str, charset: Charset | None, known: set[str] | None, max_text_length: int, unknown: Counter
) -> list[str]:
    """What is wrong with a label; characters outside the dictionary are counted in ``unknown``."""
    if not label.strip():
        return ["label is empty"]
    found = []
    if len(label) > max_text_length:
        found.append(f"label is longer than {max_text_length} characters")
    if label != label.strip():
        found.append("label begins or ends with a space")
    if any(unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn") for c in label):
        found.append("label holds control or invisible characters")
    if unicodedata.normalize("NFC", label) != label:
        found.append("label is not in composed form (NFC), so its characters are not those of a dictionary")
    if charset is not None and known is not None:
        outside = [c for c in charset.normalize(label) if c not in known]
        unknown.update(outside)
        if outside and len(outside) == len(label):
            found.append("no character of the label is in the dictionary")
        elif outside:
            found.append("label holds characters outside the dictionary")
    return found


def picture_problems(seen: Seen, max_ratio: int | None) -> list[str]:
    """What is wrong with a picture, or with its label on it."""
    found = []
    if min(seen.width, seen.height) < MIN_SIDE:
        found.append(f"picture is smaller than {MIN_SIDE} px")
    ratio = seen.width / seen.height
    if ratio < 0.5 and len(seen.label) > 1:
        found.append("picture is more than twice as high as wide: vertical text?")
    q = int(bucket(ratio, 1, max_ratio or 10_000))
    columns = bucket_size(q)[0] // COLUMN
    repeats = sum(a == b for a, b in zip(seen.label, seen.label[1:]))
    if len(seen.label) + repeats > columns:
        found.append("label needs more columns than a picture of its width / height has (CTC cannot learn it)")
    return found


def same_pictures(first: Sequence[Seen], second: Sequence[Seen] | None = None) -> list[Pair]:
    """Pictures that occur twice in a set, or (with ``second``) in both sets.

    Every record of the second set is in at most one pair. Near-equal pictures count only with the same label: words in
    one font look alike.
    """
    within = second is None
    by_pixels: dict[bytes, Seen] = {}
    parts: dict[tuple[int, int], list[Seen]] = {}
    pairs: list[Pair] = []

    def learn(seen: Seen) -> None:
        by_pixels.setdefault(seen.pixels, seen)
        for key in _parts(seen.look):
            parts.setdefault(key, []).append(seen)

    for seen in () if within else first:
        learn(seen)
    for seen in first if within else second or ():
        other = by_pixels.get(seen.pixels)
        if other is None:
            near = _nearest(seen, parts)
            if near is not None:
                pairs.append(Pair(near, seen, False))
        else:
            pairs.append(Pair(other, seen, True))
        if within and other is None:
            learn(seen)
    return pairs


def _parts(look: int) -> list[tuple[int, int]]:
    """Eight parts of a hash: two hashes that differ in at most seven bits share one."""
    return [(i, look >> (16 * i) & 0xFFFF) for i in range(8)] if look else []


def _nearest(seen: Seen, parts: dict[tuple[int, int], list[Seen]]) -> Seen | None:
    label = seen.label.casefold()
    for key in _parts(seen.look):
        for other in parts.get(key, ())[:CROWD]:
            if (other.look ^ seen.look).bit_count() <= NEAR and other.label.casefold() == label:
                ratio = (seen.width / seen.height) / (other.width / other.height)
                if 0.8 < ratio < 1.25:
                    return other
    return None


@dataclass
class Advice:
    """Settings that a data set asks for.

    Attributes:
        characters: of the labels, most frequent scripts first within Unicode order; rare: fewer than five times.
        use_space_char: labels hold spaces. max_ratio, max_text_length: enough for nearly all records.
    """

    characters: list[str]
    rare: list[str]
    use_space_char: bool
    max_ratio: int
    max_text_length: int


def advise(reports: Sequence[SetReport]) -> Advice:
    """From all training sets together."""
    counts: Counter = sum((r.characters for r in reports), Counter())
    usable = {c: n for c, n in counts.items() if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf")}
    ratios = np.concatenate([r.ratios for r in reports]) if reports else np.zeros(0)
    lengths = np.concatenate([r.lengths for r in reports]) if reports else np.zeros(0, int)
    widest = int(np.ceil(np.quantile(np.rint(ratios), 1 - RARE_RATIO))) if len(ratios) else 4
    longest = int(np.quantile(lengths, 0.999, method="higher")) if len(lengths) else 25
    return Advice(
        sorted(usable), sorted(c for c, n in usable.items() if n < 5), counts[" "] > 0,
        min(max(widest, 4), 25), max(longest, 25),
    )  # fmt: skip
