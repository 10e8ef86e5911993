"""Reading LMDB environments in OpenOCR's layout (https://github.com/Topdu/OpenOCR, Apache-2.0).

Keys are ASCII, sample numbers start at 1 and have nine digits: ``num-samples``,
``image-000000001`` (encoded image file), ``label-000000001`` (UTF-8), ``wh-000000001``
(``"<width>_<height>"``, optional).

py-lmdb refuses to open one path twice in a process, and an environment cannot be pickled or used
after a fork. So every process has one table of open environments, filled on first use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lmdb

from openrec.errors import DataError

_OPEN: dict[str, tuple[Any, Any]] = {}  # real path -> (environment, its read transaction)
_owner = os.getpid()


def _transaction(real: str, path: str) -> Any:
    """The read transaction of this process for the environment in ``real``; messages call it ``path``."""
    global _owner
    if _owner != os.getpid():  # forked: the parent's environments must be opened anew here
        close_all()
        _owner = os.getpid()
    opened = _OPEN.get(real)
    if opened is None:
        env = _open(path)
        opened = _OPEN[real] = (env, env.begin(buffers=False))
    return opened[1]


def close(path: str) -> None:
    """Close this process's environment in ``path``, if open. Readers open it again when they need it."""
    env, _ = _OPEN.pop(os.path.realpath(path), (None, None))
    if env is not None:
        env.close()


def close_all() -> None:
    """Close every environment that this process has open."""
    for real in list(_OPEN):
        close(real)


def _open(path: str) -> Any:
    if not (Path(path) / "data.mdb").is_file():
        raise DataError(missing_message(path))
    try:
        return lmdb.open(
            str(path), readonly=True, lock=False, readahead=False, meminit=False, max_readers=32, create=False
        )
    except lmdb.Error as error:
        raise DataError(
            f'"{path}" cannot be opened as an LMDB ({error}). Expected a directory with data.mdb, as written by '
            "tools/create_lmdb_dataset.py; was it copied completely?"
        ) from error


def missing_message(path: str | os.PathLike) -> str:
    """Why there is no LMDB at ``path`` and what lies near it."""
    path = Path(path)
    expected = "Expected a directory with data.mdb, as written by tools/create_lmdb_dataset.py."
    if path.is_file():
        return f'"{path}" is a file, not an LMDB directory. {expected}'
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir())
        below = sorted(str(p.parent) for p in path.glob("*/data.mdb"))
        if below:
            return f'"{path}" is not an LMDB, but these are: {", ".join(below[:8])}. Name them in data_dir_list.'
        return f'"{path}" has no data.mdb (it holds: {", ".join(inside[:8]) or "nothing"}). {expected}'
    return f'"{path}" does not exist. {expected} {nearest_existing(path)}'


def nearest_existing(path: str | os.PathLike) -> str:
    """``'"/a/b" exists and holds: ...'`` for the longest existing part of ``path``."""
    path = Path(path).absolute()
    parent = next((p for p in path.parents if p.is_dir()), Path("/"))
    try:
        inside = sorted(p.name for p in parent.iterdir())
    except OSError:
        inside = []
    shown = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "")
    return f'"{parent}" exists and holds: {shown or "nothing"}. Relative paths start at the working directory.'


class LmdbReader:
    """One environment by path; can be pickled, because it holds nothing but the path.

    Raises:
        DataError: from the first access, when there is no LMDB at ``path``.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = str(Path(path).expanduser())
        self._real = os.path.realpath(self.path)

    def _transaction(self) -> Any:
        return _transaction(self._real, self.path)

    def get(self, key: bytes) -> bytes | None:
        return self._transaction().get(key)

    def image(self, number: int) -> bytes | None:
        return self._transaction().get(b"image-%09d" % number)

    def label(self, number: int) -> bytes | None:
        return self._transaction().get(b"label-%09d" % number)

    def name(self, number: int) -> str:
        return f"{self.path}:image-{number:09d}"

    def close(self) -> None:
        close(self.path)

    def num_samples(self) -> int:
        """The stored count.

        Raises:
            DataError: ``num-samples`` is missing or not a number.
        """
        value = self.get(b"num-samples")
        if value is not None and value.isdigit():
            return int(value)
        keys = [bytes(k).decode("ascii", "replace") for k, _ in zip(self._keys(b""), range(4))]
        what = "has no key num-samples" if value is None else f"has num-samples = {value!r}, which is not a number"
        raise DataError(
            f'"{self.path}" {what} (first keys: {", ".join(keys) or "none"}). Expected image-000000001, '
            "label-000000001, ..., num-samples; an interrupted conversion leaves no count: convert it again with "
            "tools/create_lmdb_dataset.py."
        )

    def _keys(self, prefix: bytes) -> Iterator[bytes]:
        cursor = self._transaction().cursor()
        if cursor.set_range(prefix):
            for key in cursor.iternext(keys=True, values=False):
                if not key.startswith(prefix):
                    return
                yield key

    def numbers(self, kind: str) -> Iterator[int]:
        """The numbers for which a ``kind`` ("image", "label", "wh") exists; values are not read."""
        skip = len(kind) + 1
        for key in self._keys(kind.encode() + b"-"):
            if key[skip:].isdigit():
                yield int(key[skip:])

    def items(self, kind: str) -> Iterator[tuple[int, bytes]]:
        """``(number, value)`` of every ``kind`` key, in the order of the numbers."""
        prefix = kind.encode() + b"-"
        cursor = self._transaction().cursor()
        if not cursor.set_range(prefix):
            return
        for key, value in cursor.iternext(keys=True, values=True):
            if not key.startswith(prefix):
                return
            if key[len(prefix) :].isdigit():
                yield int(key[len(prefix) :]), value


def leaf_environments(root: str | os.PathLike) -> list[str]:
    """All directories at or below ``root`` that hold a ``data.mdb``, sorted.

    Raises:
        DataError: there is none.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(missing_message(root))
    found = sorted(str(p.parent) for p in root.rglob("data.mdb"))
    if not found:
        raise DataError(missing_message(root))
    return found
