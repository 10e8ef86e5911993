"""One process at a time works on a folder; the lock goes when the process ends, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openrec.errors import OpenRecError

try:
    import fcntl
except ImportError:  # no such locks on Windows: there one process at a time has to do
    fcntl = None  # type: ignore[assignment]


class Busy(OpenRecError):
    """Another process holds the lock."""


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of ``folder`` (made if missing).

    Raises:
        Busy: another process holds it, and it is not waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise Busy(f'another process works in "{folder}".') from error
        yield
