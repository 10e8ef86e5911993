"""All systems of a comparison, one after the other, each in a process of its own."""

from __future__ import annotations

import logging
import multiprocessing
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrec.compare.systems import Conditions, Result, run_system
from openrec.compare.table import write_all
from openrec.errors import ConfigError, OpenRecError

logger = logging.getLogger("openrec")


def names_of(configs: Sequence[str]) -> list[str]:
    """Short, different names: the files' stems, with the directory in front where stems are equal.

    Raises:
        ConfigError: the same file twice.
    """
    stems = [Path(c).stem for c in configs]
    names = [s if stems.count(s) == 1 else f"{Path(c).parent.name}_{s}" for s, c in zip(stems, configs)]
    if len(set(names)) < len(names):
        raise ConfigError(f"-c: the same config, or the same name, twice: {', '.join(configs)}.")
    return names


def compare(
    configs: Sequence[str], output: str | Path, conditions: Conditions, *, separate: bool = True, command: str = ""
) -> list[Result]:
    """Train and measure each system, write the table after each.

    A system that is finished in ``output`` is not trained again; one that was stopped continues at its last
    checkpoint. A system that fails is named and left out; the others go on.

    Args:
        separate: a process for each system, so that memory and CPU time are its own.

    Raises:
        OpenRecError: not one system could be trained.
    """
    names, output = names_of(configs), Path(output)
    output.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for path, name in zip(configs, names):
        try:
            run = _apart if separate else run_system
            results.append(run(path, name, output / name, conditions))
        except OpenRecError as error:
            logger.error("%s is left out: %s", name, error)
            continue
        write_all(results, output, command)
    if not results:
        raise OpenRecError("not one system could be trained; the reasons stand above.")
    return results


def _apart(path: str, name: str, folder: Path, conditions: Conditions) -> Result:
    if not (folder / "result.json").exists():
        process = multiprocessing.get_context("spawn").Process(
            target=_child, args=(path, name, folder, conditions), name=name
        )
        _wait(process)
        if process.exitcode in (130, 143):  # it was told to stop itself
            raise SystemExit(process.exitcode)
        if process.exitcode:
            raise OpenRecError(f"its process ended with status {process.exitcode}; what it wrote last stands above.")
    return run_system(path, name, folder, conditions)


def _wait(process: Any) -> None:
    """Run to the end; whoever stops this process stops that one, which saves its run first."""

    def stop(number: int, _: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        process.start()
        process.join()
    except BaseException:
        process.terminate()
        process.join()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _child(path: str, name: str, folder: Path, conditions: Conditions) -> None:
    from openrec.cli import run_tool

    run_tool(lambda: run_system(path, name, folder, conditions))
