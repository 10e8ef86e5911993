"""Real words for training, without what models are scored on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from openrec.data.create_lmdb import LmdbWriter
from openrec.preprocess.decode import UnreadableImage, decode_rgb
from openrec.shipping.overlap import Fingerprints
from openrec.shipping.wordsets import EVERY, all_words, is_held_out, read_rows


class Prepared(NamedTuple):
    """How many words went where."""

    written: int
    held_out: int
    in_tests: int
    broken: int

    def __str__(self) -> str:
        return (
            f"{self.written} words for training; left out: {self.held_out} held-out rows, {self.in_tests} pictures "
            f"that are in a test set or a held-out row, {self.broken} that cannot be opened"
        )


def prepare_real(
    folder: str | Path,
    output: str | Path,
    tests: Sequence[str | Path] = (),
    every: int = EVERY,
    overwrite: bool = False,
) -> Prepared:
    """Write an LMDB of ``folder/labels.tsv`` without every ``every``-th row and without any picture of ``tests``.

    Args:
        tests: folders with ``labels.tsv`` whose pictures must not be trained on, under any name or compression.

    Raises:
        DataError: labels or images that cannot be read, or an occupied ``output``.
    """
    rows, forbidden = read_rows(folder), Fingerprints()
    for test in tests:
        for word in all_words(test).words:
            forbidden.add(word.name, word.image)
    training, held_out, in_tests, broken = [], 0, 0, 0
    for number, (name, text) in enumerate(rows, 1):
        if is_held_out(number, every):
            held_out += 1
            forbidden.add(name, (Path(folder) / name).read_bytes())
        else:
            training.append((name, text))
    with LmdbWriter(output, overwrite) as writer:
        for name, text in training:
            data = (Path(folder) / name).read_bytes()
            if forbidden.find(data) is not None:
                in_tests += 1
                continue
            try:
                height, width = decode_rgb(data).shape[:2]
            except UnreadableImage:
                broken += 1
                continue
            writer.put(data, text, width, height)
    return Prepared(writer.count, held_out, in_tests, broken)
