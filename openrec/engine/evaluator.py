"""Evaluation: every sample is scored, on all processes together."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from openrec.data.types import Batch
from openrec.engine.distributed import World, gather
from openrec.errors import ConfigError, OpenRecError
from openrec.metrics import build_metric

logger = logging.getLogger("openrec")

RULE = "openocr_"  # prefix of the numbers under OpenOCR's rule


class Evaluator:
    """Scores a model on a loader.

    The main numbers compare with the raw label of every sample; an image that cannot be read counts as read
    wrongly. Beside them stand the numbers under the rule of OpenOCR, which leaves some samples out and compares
    with the label that is left after encoding: ``openocr_acc`` and so on.

    Args:
        loader: of ``Eval``; each process has its share.
        post_process: of the run.
        metric_config: the config's ``Metric``.
        amp: bf16 autocast, as in training.
        bar: show a progress bar.
        lists: keep the numbers by length and by ratio under the rule too.
    """

    def __init__(
        self,
        loader: Any,
        post_process: Any,
        metric_config: Mapping[str, Any],
        world: World,
        *,
        amp: bool = False,
        bar: bool = False,
        lists: bool = False,
    ) -> None:
        self.lists = lists
        self.loader, self.post_process, self.world, self.amp, self.bar = loader, post_process, world, amp, bar
        self.metric, self.rule = build_metric(metric_config), build_metric(metric_config)
        self.main_indicator: str = self.metric.main_indicator
        self._unreadable: set[str] = set()

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """The metric's numbers, ``fps`` (images per second of model time, first batch left out), the rule's numbers.

        The same on every process. The model is left in the mode it came in.
        """
        was_training = model.training
        model.eval()
        images = seconds = 0.0
        try:
            for i, batch in enumerate(self._batches()):
                start = self._now()
                preds = self._read(model, batch)
                # the first call allocates and chooses algorithms: its time counts only when there is no other
                if i == 1:
                    images = seconds = 0.0
                seconds, images = seconds + self._now() - start, images + len(batch)
                self._score(preds, batch)
        finally:
            model.train(was_training)
        return self._totals(images, seconds)

    @torch.no_grad()
    def try_one(self, model: nn.Module, batch: Batch) -> None:
        """Read and score ``batch`` for nothing: what cannot work fails before the first step, not after an epoch.

        Raises:
            ConfigError: the model, the post-processing and the metric cannot take what ``Eval`` gives.
        """
        was_training = model.training
        model.eval()
        try:
            self._score(self._read(model, batch), batch)
        except OpenRecError as error:
            raise ConfigError(f"Eval: {error}") from error
        except Exception as error:
            shapes = ", ".join(str(list(tensor.shape[1:])) for tensor in batch.tensors)
            raise ConfigError(
                f"Eval: a sample of its data set (tensors {shapes}) cannot be read and scored: "
                f"{type(error).__name__}: {error}. Compare Eval.dataset.transforms with Train's."
            ) from error
        finally:
            model.train(was_training)
            self.metric.reset()
            self.rule.reset()

    def _batches(self) -> Any:
        batches = self.loader.epoch(1)
        if not self.bar:
            return batches
        return tqdm(batches, total=len(self.loader), desc="eval model", position=0, leave=False)

    def _now(self) -> float:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        return time.perf_counter()

    def _read(self, model: nn.Module, batch: Batch) -> Any:
        tensors = batch.to(self.world.device, non_blocking=True).tensors
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.amp):
            return model(tensors[0], data=tensors[1:])

    def _score(self, preds: Any, batch: Batch) -> None:
        tensors = batch.tensors
        if len(tensors) > 1:
            both = self.post_process(preds, tensors)
            read = [branch[0] for branch in both] if isinstance(both, list) else both[0]
            labels = [branch[1] for branch in both] if isinstance(both, list) else both[1]
            # a picture that cannot be read is replaced by OpenOCR, so it is not scored under its rule
            keep = [i for i, why in enumerate(batch.excluded) if why is None and not batch.unreadable[i]]
            if len(keep) == len(batch):
                self.rule(_join(read, labels), tensors)
            elif keep:
                self.rule(_join(_take(read, keep), _take(labels, keep)), [t[keep] for t in tensors])
        else:
            read = self.post_process(preds)
        branches = isinstance(read, list) and bool(read) and isinstance(read[0], list)
        texts = [(text, 1.0) for text in batch.texts]
        missed = {i for i, bad in enumerate(batch.unreadable) if bad}
        if missed:
            self._name_unreadable([batch.names[i] for i in sorted(missed)])
            read = [_blank(r, missed, batch) for r in read] if branches else _blank(read, missed, batch)
        self.metric(_join(read, [texts] * len(read) if branches else texts), tensors)

    def _name_unreadable(self, names: list[str]) -> None:
        """Each broken picture once per run, not once per evaluation."""
        fresh = [name for name in names if name not in self._unreadable]
        self._unreadable.update(fresh)
        if fresh:
            logger.warning("unreadable, scored as wrong: %s", ", ".join(fresh))

    def _totals(self, images: float, seconds: float) -> dict[str, Any]:
        parts = gather((self.metric.state(), self.rule.state(), images, seconds), self.world)
        self.metric.reset()
        self.rule.reset()
        for main, rule, _, _ in parts:
            self.metric.merge(main)
            self.rule.merge(rule)
        counts = self.metric.counts() if hasattr(self.metric, "counts") else {}
        totals: dict[str, Any] = dict(self.metric.get_metric())
        totals["fps"] = sum(p[2] for p in parts) / max(1e-9, max(p[3] for p in parts))
        if "correct" in counts:
            totals["correct"] = counts["correct"]
        rule = self.rule.get_metric()
        totals.update({RULE + k: v for k, v in rule.items() if self.lists or not isinstance(v, list)})
        return totals


def _join(read: Any, labels: Any) -> Any:
    """``(predictions, labels)``, or one such pair for each branch."""
    if isinstance(read, list) and read and isinstance(read[0], list):
        return [(r, t) for r, t in zip(read, labels)]
    return read, labels


def _take(values: Any, keep: list[int]) -> Any:
    if values and isinstance(values[0], list):
        return [[branch[i] for i in keep] for branch in values]
    return [values[i] for i in keep]


def _blank(read: list[tuple[str, float]], missed: set[int], batch: Batch) -> list[tuple[str, float]]:
    """An unreadable image was read as nothing; where the label itself is empty, not even that is right."""
    blank = {i: ("" if batch.texts[i].strip() else "\0", 0.0) for i in missed}
    return [blank.get(i, r) for i, r in enumerate(read)]


def split_rule(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The main numbers, and those under OpenOCR's rule without their prefix."""
    main = {k: v for k, v in metrics.items() if not k.startswith(RULE)}
    return main, {k[len(RULE) :]: v for k, v in metrics.items() if k.startswith(RULE)}
