"""The progress bar of an epoch, on a terminal."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


class Bar:
    """A tqdm bar on standard error, or nothing.

    Args:
        total, done: batches of the epoch, and those of them already done.
        shown: False does nothing.
    """

    def __init__(self, total: int, done: int, title: str, shown: bool) -> None:
        self._bar: Any = None
        if shown:
            self._bar = tqdm(total=total, initial=done, desc=title, file=sys.stderr, leave=False, dynamic_ncols=True)

    def advance(self, batches: int, loss: float | None = None) -> None:
        if self._bar is None:
            return
        if loss is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        self._bar.update(batches)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._bar is not None:
            self._bar.close()
