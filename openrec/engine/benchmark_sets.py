"""The benchmark sets of ``tools/eval_rec_all_*.py`` and where they are looked for.

Sets, their order and their places beside the repository are those of OpenOCR's scripts of the same names
(https://github.com/Topdu/OpenOCR, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openrec.errors import DataError
from openrec.registry import nearest

ENGLISH: dict[str, tuple[str, ...]] = {
    "common": ("test/IIIT5k", "test/SVT", "test/IC13_857", "test/IC15_1811", "test/SVTP", "test/CUTE80"),
    "Union14M": (
        "u14m/curve", "u14m/multi_oriented", "u14m/artistic", "u14m/contextless", "u14m/salient", "u14m/multi_words",
        "u14m/general",
    ),
    "OST": ("OST/weak", "OST/heavy"),
    "extra": ("wordart_test", "test/IC13_1015", "test/IC15_2077"),
}  # fmt: skip
_BCTR = "benchmark_bctr/benchmark_bctr_test/"
CHINESE = {"BCTR": tuple(_BCTR + name for name in ("scene_test", "web_test", "document_test", "handwriting_test"))}
LONG = {"LTB": ("ltb/long_lmdb",)}
LONG_LISTS = {"LTB": tuple(f"ltb/ultra_long_{part}_list.txt" for part in ("26_35", "36_55", "56"))}


@dataclass(frozen=True)
class Place:
    """One set: its group, its name, where it is (None: not found) and where it was looked for."""

    group: str
    name: str
    path: Path | None
    tried: tuple[Path, ...]


def find_sets(
    groups: Mapping[str, Sequence[str]],
    root: str | Path = "..",
    given: Sequence[str] = (),
    only: Sequence[str] = (),
) -> list[Place]:
    """Where each set is: as ``given``, else under ``root`` with its whole path, else under ``root`` by its name.

    Args:
        groups: one of the tables above.
        root: the directory that holds ``test``, ``u14m``, ...
        given: ``NAME=PATH`` words; a name that no table knows makes a group of its own, ``own``.
        only: groups or sets to evaluate; empty: all.

    Raises:
        DataError: a word without ``=``; a given path that does not exist; an unknown group or set.
    """
    named = dict(_split(word) for word in given)
    for name, there in named.items():
        if not there.exists():
            raise DataError(f'--sets {name}: "{there}" not found (working directory: {Path.cwd()}).')
    root, found = Path(root).expanduser(), []
    for group, paths in groups.items():
        for path in paths:
            name = Path(path).name
            tried = (named.pop(name),) if name in named else tuple(dict.fromkeys((root / path, root / name)))
            found.append(Place(group, name, next((p for p in tried if p.exists()), None), tried))
    found += [Place("own", name, there, (there,)) for name, there in named.items()]
    known = {p.group for p in found} | {p.name for p in found}
    for word in only:
        if word not in known:
            raise DataError(f"--only {word}: no such group or set.{nearest(word, known)}")
    return [p for p in found if not only or p.group in only or p.name in only]


def _split(word: str) -> tuple[str, Path]:
    name, equals, path = word.partition("=")
    if not equals or not name or not path:
        raise DataError(f"--sets {word}: expected NAME=PATH, e.g. IIIT5k=/data/IIIT5k.")
    return name, Path(path).expanduser()
