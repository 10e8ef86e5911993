"""``Global.diagnose``: every so many steps the model tells what it does, the log gets numbers and warnings."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import torch

from openrec.diagnose.scalars import SAMPLES, gradients, keep_some, scalars, summary
from openrec.diagnose.watch import NEW, Watch
from openrec.engine.logger import TensorBoard
from openrec.engine.rng import preserved_rng
from openrec.engine.state import RunParts
from openrec.engine.step import StepResult, TrainStep
from openrec.modeling.record import Recorder

logger = logging.getLogger("openrec")


class Diagnosis:
    """Runs a training step, and listens to the first one and to every ``every``-th.

    Only the main process listens. Numbers go to ``log.jsonl`` (event ``diagnose``: the mean over modules under a plain
    name, and each module's own) and to TensorBoard; a warning is logged when it begins. A continued run remembers what
    the log says of the steps before.

    Args:
        options: the config's ``Global``.
    """

    def __init__(self, parts: RunParts, step: TrainStep, board: TensorBoard, options: Mapping[str, Any]) -> None:
        self.parts, self.step, self.board = parts, step, board
        self.every = int(options["diagnose_step"] or options["print_batch_step"])
        self.active = bool(options["diagnose"]) and parts.world.is_main
        self.clip = float(options["grad_clip_val"])
        self.watch = Watch(warm_up=max(NEW, round(parts.schedule.warmup_steps)))
        if self.active:
            self._remember()

    def __call__(self, group: list[Any], number: int, first_batch: int) -> StepResult:
        """Step ``number``."""
        if not self.active or (number != 1 and number % self.every):
            return self.step(group, number, first_batch)
        with Recorder(self.parts.model, keep_some, SAMPLES) as recorder, self._eager():
            result = self.step(group, number, first_batch)
        values = scalars({**self._reading(result), **recorder.entries})
        scale = max(1.0, result.grad_norm / self.clip) if self.clip > 0 and result.updated else 1.0
        values |= {name: scale * norm for name, norm in gradients(self.parts.model).items()}  # before clipping
        self._report(values, number, result.losses.get("loss"))
        return result

    def _reading(self, result: StepResult) -> dict[tuple[str, str], list[Any]]:
        """What is told only while reading, as recurrent decoders do: a few images of the step's last batch."""
        model, world = self.parts.model, self.parts.world
        if result.batch is None:
            return {}
        model.eval()
        try:
            amp = torch.autocast(world.device.type, torch.bfloat16, enabled=self.step.amp)
            with torch.no_grad(), preserved_rng(), amp, Recorder(model, keep_some, SAMPLES) as recorder:
                model(result.batch.tensors[0][:SAMPLES])
        finally:
            model.train()
        return recorder.entries

    @contextmanager
    def _eager(self) -> Any:
        """A compiled model tells nothing: this step runs without the compiler."""
        before = self.step.forward
        self.step.forward = eager = self.step.parallel or self.parts.model
        try:
            yield
        finally:
            if self.step.forward is eager:  # else the step has just wrapped the model
                self.step.forward = before

    def _report(self, values: Mapping[str, float], number: int, loss: float | None) -> None:
        means = summary(values)
        fresh = self.watch.check(values, number, loss)
        if not values:  # every sample of the step was skipped, so nothing ran
            return
        logger.info("diagnose, step %d: %s", number, ", ".join(f"{k}: {v:.4g}" for k, v in means.items()))
        for text in fresh:
            logger.warning("diagnose, step %d: %s", number, text)
        row = {**means, **values, "loss": loss, "warnings": sorted(self.watch.active)}
        self.parts.log.write("diagnose", step=number, epoch=self.parts.progress.epoch, **row)
        self.board.write("DIAGNOSE", {**means, **values}, number)

    def _remember(self) -> None:
        """Let the watch see what the log holds of this run's earlier steps."""
        if not self.parts.progress.step or not self.parts.log.path.exists():
            return
        for line in self.parts.log.path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row.get("event") == "diagnose":
                values = {k: v for k, v in row.items() if "/" in k and isinstance(v, (int, float))}
                self.watch.check(values, int(row["step"]), row.get("loss"))
