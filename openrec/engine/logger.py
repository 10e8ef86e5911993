"""What a run writes: readable lines, one JSON object per event, TensorBoard where it is installed.

Line formats are OpenOCR's (https://github.com/Topdu/OpenOCR, Apache-2.0), which people's log parsers know.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from openrec.errors import ConfigError, OpenRecError

logger = logging.getLogger("openrec")
_FORMAT = logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%Y/%m/%d %H:%M:%S")


def make_directory(path: str) -> Path:
    """``Global.output_dir``, made if missing.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    directory = Path(path).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(directory, os.W_OK) else "no right to write there"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise ConfigError(f'Global.output_dir: "{path}" cannot be used ({reason}). Choose another directory.')
    return directory


@contextmanager
def full_disk_told(directory: Path) -> Iterator[None]:
    """Within the block a full disk is one clear message, whichever file was being written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OpenRecError(
            f'"{directory}": {error.strerror} while writing {error.filename or "a file"}. The checkpoints there are '
            "whole; free some space and start the same command again."
        ) from error


class _ConsoleHandler(logging.StreamHandler):
    """Standard output; a progress bar steps aside for every line."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout  # of now: it may have been replaced since
        with tqdm.external_write_mode(file=sys.stdout, nolock=False):
            super().emit(record)


def start_logging(directory: str | Path | None, is_main: bool = True) -> None:
    """Send the logger ``openrec`` to standard output and to ``directory/train.log`` (appended).

    Handlers of an earlier run in this process are closed. Processes other than the main one log errors only.
    """
    stop_logging()
    handlers: list[logging.Handler] = [_ConsoleHandler()]
    if directory is not None and is_main:
        handlers.append(logging.FileHandler(Path(directory) / "train.log", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(_FORMAT)
        handler.set_name("openrec-run")
        handler.setLevel(logging.INFO if is_main else logging.ERROR)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def stop_logging() -> None:
    """Close the handlers of ``start_logging``."""
    for handler in [h for h in logger.handlers if h.get_name() == "openrec-run"]:
        logger.removeHandler(handler)
        handler.close()


def log_config(config: Mapping[str, Any]) -> None:
    """The config block: sorted keys, four spaces a level."""
    logger.info("----------- Config -----------")
    _log_mapping(config, 0)
    logger.info("---------------------------------------------")


def _log_mapping(mapping: Mapping[str, Any], level: int) -> None:
    for key, value in sorted(mapping.items(), key=lambda item: str(item[0])):
        if isinstance(value, Mapping):
            logger.info("%s%s : ", " " * 4 * level, key)
            _log_mapping(value, level + 1)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            logger.info("%s%s : ", " " * 4 * level, key)
            for item in value:
                logger.info("%s- %s", " " * 4 * (level + 1), item)
        else:
            logger.info("%s%s : %s", " " * 4 * level, key, value)


def metric_text(metrics: Mapping[str, Any]) -> str:
    """``k: v, k: v``"""
    return ", ".join(f"{name}: {value}" for name, value in metrics.items())


def show_bar(wanted: bool, is_main: bool) -> bool:
    """Whether to show progress bars: on a terminal, in the main process, unless switched off."""
    return wanted and is_main and sys.stderr is not None and sys.stderr.isatty()


class JsonLines:
    """``log.jsonl``: one JSON object a line; NaN and infinity are written as null.

    Args:
        path: the file; appended to.
        active: False writes nothing (processes other than the main one).
    """

    def __init__(self, path: str | Path, active: bool = True) -> None:
        self.path, self.active = Path(path), active

    def write(self, event: str, **values: Any) -> None:
        if not self.active:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **_finite(values)}, ensure_ascii=False) + "\n")

    def size(self) -> int:
        """Bytes written so far, for ``cut``."""
        return self.path.stat().st_size if self.active and self.path.exists() else 0

    def cut(self, size: int) -> int:
        """Remove what stands behind the first ``size`` bytes, which will be written again; returns how many bytes."""
        removed = self.size() - size
        if removed > 0:
            os.truncate(self.path, size)
        return max(0, removed)

    def put_aside(self) -> None:
        """Keep the file of an earlier run under the next free name ``log.N.jsonl``."""
        if not self.active or not self.path.exists():
            return
        number = 1
        while (other := self.path.with_suffix(f".{number}.jsonl")).exists():
            number += 1
        self.path.rename(other)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


class TensorBoard:
    """Scalars for TensorBoard; does nothing when not wanted or not installed.

    Args:
        directory: where event files go.
        wanted: ``Global.use_tensorboard``.
        step: of the checkpoint that a run continues at; later points of an earlier start are hidden.
    """

    def __init__(self, directory: str | Path, wanted: bool, step: int = 0) -> None:
        self._writer: Any = None
        if not wanted:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.warning("Global.use_tensorboard: tensorboard is not installed (pip install tensorboard).")
            return
        self._writer = SummaryWriter(str(directory), purge_step=step + 1 if step else None)

    def write(self, prefix: str, values: Mapping[str, Any], step: int) -> None:
        """Every number of ``values`` as ``prefix/name``."""
        if self._writer is None:
            return
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
