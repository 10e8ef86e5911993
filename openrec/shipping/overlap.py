"""Is an image of a test set among the training images?

Two images are the same picture when their bytes are equal, or when their difference hashes (Zauner, "Implementation
and Benchmarking of Perceptual Image Hash Functions", 2010) of 256 bits differ in at most ``NEAR`` and their thumbnails
are alike. Measured on 50 ICDAR 2015 words stored twice, as PNG and as smaller JPEG: at most 15 bits, correlation of
thumbnails at least 0.99; two photographs of one sign: at least 50 bits, at most 0.94. Clean pictures of short words can
come as near as 15 bits and 0.92, which is why both are asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from openrec.data.check import records_of
from openrec.errors import DataError
from openrec.preprocess.decode import UnreadableImage, decode_rgb
from openrec.shipping.wordsets import WordSet

SIDE, NEAR, ALIKE = 16, 24, 0.96  # bits per side of the hash; bits that may differ; least correlation
_ONES = np.array([bin(byte).count("1") for byte in range(256)], np.uint16)  # bits set in a byte


class Same(NamedTuple):
    """A picture of a test set and the one of training that shows the same."""

    test: str
    training: str
    bits: int


class Fingerprints:
    """Digests and hashes of many images, by name."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._digests: dict[bytes, int] = {}
        self._looks: list[np.ndarray] = []
        self._thumbnails: list[np.ndarray] = []
        self._owners: list[int] = []  # of the looks

    def __len__(self) -> int:
        return len(self.names)

    def add(self, name: str, data: bytes) -> None:
        """An image that cannot be opened is known by its bytes alone."""
        self._digests.setdefault(_digest(data), len(self.names))
        self.names.append(name)
        look = difference_hash(data)
        if look is not None:
            self._looks.append(look[0][None])
            self._thumbnails.append(look[1])
            self._owners.append(len(self.names) - 1)

    def find(self, data: bytes) -> tuple[str, int] | None:
        """Name of the same picture and the bits in which it differs; None: it is not here."""
        exact = self._digests.get(_digest(data))
        if exact is not None:
            return self.names[exact], 0
        look = difference_hash(data)
        if look is None or not self._looks:
            return None
        self._looks = [np.concatenate(self._looks)]
        bits = _ONES[self._looks[0] ^ look[0]].sum(1)
        for place in np.flatnonzero(bits <= NEAR):
            if np.corrcoef(self._thumbnails[place], look[1])[0, 1] >= ALIKE:
                return self.names[self._owners[place]], int(bits[place])
        return None


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def difference_hash(data: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """uint8 ``[32]`` (16 x 16 bits: is a cell lighter than its left neighbour) and the thumbnail, uint8 ``[272]``.

    None for an image that cannot be opened, or too even to be told from others.
    """
    try:
        grey = cv2.cvtColor(decode_rgb(data), cv2.COLOR_RGB2GRAY)
    except UnreadableImage:
        return None
    small = cv2.resize(grey, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA)
    bits = small[:, 1:] > small[:, :-1]
    return (np.packbits(bits), small.ravel()) if small.std() > 1 else None


def fingerprints(paths: Iterable[str]) -> Fingerprints:
    """Of all images in LMDBs, folders of LMDBs or label files.

    Raises:
        DataError: no such data, or no image in it.
    """
    found = Fingerprints()
    for path in paths:
        before = len(found)
        for record in records_of(path):
            if record.image is not None:
                found.add(record.name, record.image)
        if len(found) == before:
            raise DataError(f'"{path}" holds no image, so nothing can be compared with it.')
    return found


def overlap(training: Fingerprints, sets: Sequence[WordSet]) -> list[Same]:
    """Every photograph of the test sets that training holds too."""
    found = []
    for words in sets:
        for word in words.words if words.photographs else ():
            same = training.find(word.image)
            if same is not None:
                found.append(Same(f"{words.name}: {word.name}", *same))
    return found


def refuse_overlap(found: Sequence[Same]) -> None:
    """Raises ``DataError`` that names the first pictures, when there are any."""
    if found:
        lines = "\n".join(f"  {s.test} is {s.training} ({s.bits} of 256 bits differ)" for s in found[:10])
        raise DataError(
            f"{len(found)} pictures of the test sets are in the training data, so their score would flatter:\n{lines}\n"
            "Make the training data anew with tools/prepare_real.py, which leaves them out, and train again."
        )
