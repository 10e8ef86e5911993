"""The character map of a font file: which characters a face has a glyph for.

Pillow draws a box for a character that a face lacks and does not say so. Reading the ``cmap`` table
answers exactly and costs a millisecond a face. Format: OpenType specification, chapter "cmap".
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

# (platform, encoding) pairs that hold Unicode, best first. (3, 0) is missing on purpose: it marks
# symbol fonts, whose "A" is a picture.
_UNICODE = [(3, 10), (0, 6), (0, 4), (3, 1), (0, 3), (0, 2), (0, 1), (0, 0)]


class NoCharacterMap(Exception):
    """The file is no sfnt or WOFF 1 file, or holds no Unicode character map."""


def face_count(path: str | Path) -> int:
    """Number of faces in a file: more than one in a ``.ttc`` collection, 0 for unreadable files."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return 0
    if head[:4] == b"ttcf":
        return struct.unpack(">I", head[8:12])[0]
    return 1 if len(head) == 12 else 0


def glyph_ids(path: str | Path, index: int, codes: np.ndarray) -> np.ndarray:
    """Glyph number of each Unicode code point, int64, 0 where the face has none.

    Raises:
        NoCharacterMap: no Unicode map, or a container that is not read here (WOFF 2).
    """
    try:
        with open(path, "rb") as file:
            table = _cmap_table(file, index)
        return _look_up(table, np.asarray(codes, np.int64))
    except (OSError, struct.error, ValueError, IndexError, zlib.error) as error:
        raise NoCharacterMap(f"{path}: {error}") from error


def _cmap_table(file: BinaryIO, index: int) -> bytes:
    tag = file.read(4)
    if tag == b"wOFF":
        file.seek(12)
        (count,) = struct.unpack(">H", file.read(2))
        file.seek(44)
        entries = [struct.unpack(">4s4I", file.read(20)) for _ in range(count)]
        for name, offset, packed, length, _ in entries:
            if name == b"cmap":
                file.seek(offset)
                data = file.read(packed)
                return zlib.decompress(data) if packed < length else data
        raise NoCharacterMap("no cmap table")
    start = 0
    if tag == b"ttcf":
        file.seek(12 + 4 * index)
        (start,) = struct.unpack(">I", file.read(4))
    elif tag not in (b"\x00\x01\x00\x00", b"OTTO", b"true"):
        raise NoCharacterMap(f"unknown container {tag!r}")
    file.seek(start + 4)
    (count,) = struct.unpack(">H", file.read(2))
    file.seek(start + 12)
    for _ in range(count):
        name, _, offset, length = struct.unpack(">4s3I", file.read(16))
        if name == b"cmap":
            file.seek(offset)
            return file.read(length)
    raise NoCharacterMap("no cmap table")


def _look_up(table: bytes, codes: np.ndarray) -> np.ndarray:
    (count,) = struct.unpack_from(">H", table, 2)
    found = {}
    for i in range(count):
        platform, encoding, offset = struct.unpack_from(">HHI", table, 4 + 8 * i)
        found[platform, encoding] = offset
    for key in _UNICODE:
        if key in found:
            data = table[found[key] :]
            (kind,) = struct.unpack_from(">H", data)
            if kind == 4:
                return _format4(data, codes)
            if kind == 12:
                return _format12(data, codes)
    raise NoCharacterMap("no Unicode character map of format 4 or 12")


def _format4(data: bytes, codes: np.ndarray) -> np.ndarray:
    words = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype(np.int64)
    n = int(words[3]) // 2
    end, start = words[7 : 7 + n], words[8 + n : 8 + 2 * n]
    delta, ranges = words[8 + 2 * n : 8 + 3 * n], words[8 + 3 * n : 8 + 4 * n]
    segment = np.minimum(np.searchsorted(end, codes), n - 1)
    inside = (codes >= start[segment]) & (codes <= end[segment]) & (codes < 0xFFFF)
    # idRangeOffset counts bytes from its own place to the glyph array.
    place = 8 + 3 * n + segment + ranges[segment] // 2 + codes - start[segment]
    stored = words[np.clip(place, 0, len(words) - 1)]
    indirect = np.where(stored == 0, 0, (stored + delta[segment]) & 0xFFFF)
    direct = (codes + delta[segment]) & 0xFFFF
    return np.where(inside, np.where(ranges[segment] == 0, direct, indirect), 0)


def _format12(data: bytes, codes: np.ndarray) -> np.ndarray:
    (n,) = struct.unpack_from(">I", data, 12)
    groups = np.frombuffer(data, ">u4", 3 * n, 16).astype(np.int64).reshape(n, 3)
    group = groups[np.minimum(np.searchsorted(groups[:, 1], codes), n - 1)]
    inside = (codes >= group[:, 0]) & (codes <= group[:, 1])
    return np.where(inside, group[:, 2] + codes - group[:, 0], 0)
