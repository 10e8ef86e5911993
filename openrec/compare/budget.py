"""Training with a budget: optimizer steps, or minutes of work."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openrec.engine.step import StepResult
from openrec.engine.trainer import Trainer
from openrec.errors import ConfigError

PILOT_STEPS, PILOT_WARM_UP = 30, 6


@dataclass(frozen=True)
class Budget:
    """Of every system: ``steps`` optimizer steps, or ``minutes`` of work on training.

    Minutes are process CPU time (of all threads) on a CPU, so that a busy machine takes nothing from anybody, and wall
    time on a GPU. Evaluations and checkpoints are not counted.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ConfigError("the budget: give one of --steps and --minutes, e.g. --minutes 30.")
        if (self.steps is not None and self.steps < 1) or (self.minutes is not None and self.minutes <= 0):
            given = self.minutes if self.steps is None else self.steps
            raise ConfigError(f"the budget: expected a positive number of steps or minutes, got {given}.")

    def text(self, device: str = "cpu") -> str:
        if self.steps is not None:
            return f"{self.steps} steps"
        return f"{self.minutes:g} minutes of {'CPU' if device == 'cpu' else 'GPU wall'} time"


class WorkClock:
    """Seconds of work: process CPU time on a CPU, wall time elsewhere; runs between ``start`` and ``stop``."""

    def __init__(self, device: str, before: float = 0.0) -> None:
        self.cpu, self.seconds, self._since = device == "cpu", before, math.nan

    def now(self) -> float:
        if self.cpu:
            return time.process_time()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(self) -> None:
        self._since = self.now()

    def stop(self) -> None:
        if not math.isnan(self._since):
            self.seconds += self.now() - self._since
        self._since = math.nan

    @property
    def total(self) -> float:
        """Seconds so far, running or not."""
        return self.seconds + (self.now() - self._since if self.running else 0.0)

    @property
    def running(self) -> bool:
        return not math.isnan(self._since)


class BudgetTrainer(Trainer):
    """The usual run, with a schedule that ends at ``Global.max_steps`` and a clock for its work.

    All parts of the schedule (warm-up, milestones) keep their share of the whole. ``work.json`` beside the checkpoint
    holds the seconds up to it.

    Args:
        minutes: of work; the run ends when they are used up, after more or fewer steps than planned, and the schedule
            goes by them. None: it ends at ``Global.max_steps``.
    """

    def __init__(self, config: Mapping[str, Any], minutes: float | None = None) -> None:
        self.total = int(config["Global"]["max_steps"])
        self.most_seconds = None if minutes is None else 60 * minutes
        self.marks: list[float] = []  # of the work clock, after each step
        super().__init__(config)
        self._file = self.output / "work.json"
        done = json.loads(self._file.read_text()) if self._file.exists() and self.parts.progress.step else {}
        self.work = WorkClock(self.world.device.type, float(done.get("seconds", 0.0)))

    def _schedule_steps(self) -> int:
        return math.ceil(self.total / int(self.options["epoch_num"]))

    @property
    def _epochs(self) -> int:
        per_epoch = math.ceil(len(self.loader) / int(self.options["accumulation_steps"]))
        planned = math.ceil(self.total / per_epoch)
        return planned if self.most_seconds is None else max(planned, self.parts.progress.epoch + 1)

    def _enough(self) -> bool:
        return super()._enough() if self.most_seconds is None else self.work.total >= self.most_seconds

    def _epoch(self) -> None:
        self.work.start()
        try:
            super()._epoch()
        finally:
            self.work.stop()

    def _step(self, group: list[Any], bar: Any) -> None:
        if self.most_seconds is not None:
            self.parts.schedule.go_to(int(self.total * min(1.0, self.work.total / self.most_seconds)))
        super()._step(group, bar)
        self.marks.append(self.work.total)

    def _report(self, result: StepResult) -> None:
        super()._report(result)
        self._note_work()

    def _note_work(self) -> None:
        self.jsonl.write("work", step=self.parts.progress.step, seconds=round(self.work.total, 3))

    def _evaluate(self) -> None:
        running = self.work.running
        self.work.stop()
        self._note_work()
        super()._evaluate()
        if running:
            self.work.start()

    def _save(self, *names: str, with_optimizer: bool = True) -> None:
        running = self.work.running
        self.work.stop()
        super()._save(*names, with_optimizer=with_optimizer)
        if with_optimizer:
            self._file.write_text(json.dumps({"seconds": self.work.seconds, "step": self.parts.progress.step}))
        if running:
            self.work.start()


def planned_steps(config: Mapping[str, Any], budget: Budget, folder: Path) -> int:
    """The steps that the budget allows: of minutes an estimate by a short pilot run, made once (``plan.json``)."""
    if budget.steps is not None:
        return budget.steps
    assert budget.minutes is not None
    plan = folder / "plan.json"
    if plan.exists():
        return int(json.loads(plan.read_text())["steps"])
    seconds = _pilot(config, folder / "pilot")
    steps = max(1, round(60 * budget.minutes / seconds))
    plan.write_text(json.dumps({"steps": steps, "seconds_per_step": seconds, "minutes": budget.minutes}))
    return steps


def _pilot(config: Mapping[str, Any], folder: Path) -> float:
    """Seconds of work per step, data included: the mean of some steps after a warm-up."""
    shutil.rmtree(folder, ignore_errors=True)
    options = {"output_dir": str(folder), "max_steps": PILOT_STEPS, "use_tensorboard": False, "save_latest_step": 0}
    trainer = BudgetTrainer({**config, "Global": {**config["Global"], **options}, "Eval": None})
    trainer.train()
    shutil.rmtree(folder, ignore_errors=True)
    times = [b - a for a, b in itertools.pairwise(trainer.marks)]
    return statistics.fmean(times[min(PILOT_WARM_UP, len(times) - 1) :])
