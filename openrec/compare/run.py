"""All systems of a comparison, one after the other, each in a process of its own."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openrec.compare.lock import Busy, locked
from openrec.compare.systems import Conditions, Result, differing, measure_again, read_result, run_system
from openrec.compare.table import write_all
from openrec.errors import ConfigError, DataError, OpenRecError, writing

logger = logging.getLogger("openrec")


class LeftOut(OpenRecError):
    """Some systems could not be trained; the table holds the others."""


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
    """Train and measure each system, write the table of all finished ones after each.

    A system that is finished in ``output`` is not trained again; one that was stopped continues at its last
    checkpoint; one that another process works on is left to it. All configs are checked before the first one is
    trained; a system that fails later is named and left out.

    Args:
        separate: a process for each system, so that memory and CPU time are its own.

    Returns:
        The finished systems in ``output``, those of ``configs`` first.

    Raises:
        ConfigError: a config, or a place of real words, that cannot work; systems under other conditions in ``output``.
        LeftOut: a system could not be trained.
    """
    names, output, failed = names_of(configs), Path(output), []
    for path in configs:
        conditions.check(path)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    refuse_other_conditions(output, conditions)
    if command:
        (output / "command.txt").write_text(command + "\n", encoding="utf-8")
    for path, name in zip(configs, names):
        try:
            (_apart if separate else run_system)(path, name, output / name, conditions)
        except Busy:
            logger.info("%s: another process works on it", name)
            continue
        except OpenRecError as error:
            logger.error("%s is left out: %s", name, error)
            failed.append(name)
            continue
        write_table(output, names)
    if failed:
        raise LeftOut(f"{', '.join(failed)}: left out, for the reasons above. The same command tries them again.")
    return finished(output, names)


def measure_all_again(output: Path, *, separate: bool = True) -> list[Path]:
    """Speeds and memory of all finished systems once more, one after the other, then the table.

    For comparisons that shared their machine: what slowed one system down need not have slowed down the next.

    Raises:
        DataError: no system is finished.
        LeftOut: a system could not be measured, as its config is another one than when it was trained, or as another
            process works on it; it keeps its numbers.
    """
    failed = []
    for result in finished(output):
        folder = output / result.name
        logger.info("%s: measured again", result.name)
        try:
            if separate:
                _alone(measure_again, (folder,), result.conditions["threads"])
            else:
                measure_again(folder)
        except OpenRecError as error:
            logger.error("%s keeps its old numbers: %s", result.name, error)
            failed.append(result.name)
    written = write_table(output)
    if failed:
        raise LeftOut(f"{', '.join(failed)}: not measured again, for the reasons above.")
    return written


def finished(output: Path, names: Sequence[str] = ()) -> list[Result]:
    """What ``output`` holds, systems in ``names`` first."""
    found = {file.parent.name: read_result(file) for file in sorted(output.glob("*/result.json"))}
    order = [*(n for n in names if n in found), *(n for n in found if n not in names)]
    return [found[n] for n in order]


def write_table(output: Path, names: Sequence[str] = ()) -> list[Path]:
    """Table, CSV and pictures of the finished systems, from what is there.

    Raises:
        DataError: no system is finished.
    """
    with locked(output, wait=True):
        results, command = finished(output, names), output / "command.txt"
        if not results:
            raise DataError(
                f'no finished system in "{output}" (each has a folder with result.json). Give the --output '
                "of an earlier comparison, or train with -c and --steps."
            )
        return write_all(results, output, command.read_text().strip() if command.exists() else "")


def refuse_other_conditions(output: Path, conditions: Conditions) -> None:
    """All systems of a table have the same budget, seed and changes.

    Raises:
        ConfigError: ``output`` holds a system for which they are others.
    """
    own = json.loads(json.dumps(asdict(conditions)))
    for file in sorted(output.glob("*/conditions.json")):
        theirs = json.loads(file.read_text())
        changed = differing({k: theirs.get(k) for k in own}, own)
        if changed:
            raise ConfigError(
                f'"{file.parent}" holds a system under other conditions: '
                + ", ".join(f"{k} {theirs.get(k)}, now {own[k]}" for k in changed)
                + ". Choose another --output, or delete that folder."
            )


def _apart(path: str, name: str, folder: Path, conditions: Conditions) -> None:
    file = folder / "result.json"
    if file.exists() and read_result(file).conditions["real"] == list(conditions.real):
        run_system(path, name, folder, conditions)  # which only looks whether it is the same system
        return
    with locked(folder):  # tells early whether another process has it
        pass
    try:
        _alone(run_system, (path, name, folder, conditions), conditions.threads)
    except OpenRecError:
        with locked(folder):  # another one may have taken it in between
            raise


def _alone(work: Callable[..., Any], arguments: tuple[Any, ...], threads: int | None) -> None:
    """Call ``work`` in a process of its own: memory and CPU time are its own, too."""
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(work, arguments, threads))
    _wait(process)
    if process.exitcode in (130, 143):  # it was told to stop itself
        raise SystemExit(process.exitcode)
    if process.exitcode:
        raise OpenRecError(f"its process ended with status {process.exitcode}; what it wrote last stands above.")


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


def _child(work: Callable[..., Any], arguments: tuple[Any, ...], threads: int | None) -> None:
    import torch

    from openrec.cli import run_tool

    if threads:
        torch.set_num_threads(threads)
    run_tool(lambda: work(*arguments))
