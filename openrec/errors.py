"""The errors a user can cause. Each message says what was expected, what came and what to do next.

The command-line tools print an ``OpenRecError`` as one message and exit with status 1; everything
else keeps its traceback, because it is a fault of this project.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class OpenRecError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(OpenRecError, ValueError):
    """A config that cannot be run: unknown name or key, wrong type, missing file, contradiction."""


class DataError(OpenRecError):
    """A data set that cannot be used at all: missing, empty, not an LMDB, nothing usable in it."""


class CheckpointError(OpenRecError):
    """A checkpoint that is missing, unreadable, or made for another model."""


class SampleError(OpenRecError):
    """One sample that cannot be used.

    Raised by a transform. Training skips the sample, counts the reason and names it in the
    end-of-epoch summary; evaluation scores it all the same. ``str(error)`` is the reason: keep it
    free of the sample's own name, so that equal reasons are counted together.
    """


@contextmanager
def writing(path: str | os.PathLike, advice: str = "Choose another --output.") -> Iterator[None]:
    """Within the block a file that cannot be written is a ``ConfigError`` that names it."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f'cannot write "{os.fspath(path)}" ({error.strerror or error}). {advice}') from error
