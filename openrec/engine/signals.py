"""SIGTERM and Ctrl-C: noted, and obeyed after the step that is under way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def noted_signals(holder: Any) -> Iterator[None]:
    """Within the block SIGTERM and the first Ctrl-C set ``holder.stop_signal``; a second Ctrl-C interrupts."""
    before = {}

    def note(number: int, frame: Any) -> None:
        if holder.stop_signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        holder.stop_signal = number

    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            before[number] = signal.signal(number, note)
        except ValueError:  # only the main thread may set handlers
            break
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
