"""The training step: one path, whatever the precision, the accumulation and the number of processes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from openrec.data.types import Batch
from openrec.engine.distributed import (
    World,
    average_gradients,
    broadcast,
    broadcast_buffers,
    gather,
    gather_numbers,
    sum_over_ranks,
)
from openrec.engine.ema import Ema
from openrec.engine.sync_bn import left_out
from openrec.errors import OpenRecError
from openrec.optimizer import Schedule

logger = logging.getLogger("openrec")


@dataclass
class StepResult:
    """What a step did.

    Attributes:
        losses: mean over its batches and over all processes, by name.
        samples: of this process.
        grad_norm: L2 norm before clipping.
        lr: rate of the first group that the step used.
        updated: whether the weights changed.
        preds, batch: of the last batch of this process, for the training metric; None when there was none.
    """

    losses: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    grad_norm: float = 0.0
    lr: float = 0.0
    updated: bool = False
    preds: Any = None
    batch: Batch | None = None


class TrainStep:
    """Forward and backward over a few batches, one update, one step of the schedule.

    Args:
        model: the bare model. The first step runs on it; then it is wrapped for several processes and compiled.
        accumulation_steps: is the length of the lists given to ``__call__``; fewer at the end of an epoch.
        amp: bf16 autocast for forward and loss. bf16 has the range of fp32 and needs no loss scaler.
        grad_clip: largest L2 norm of the gradient; 0 is off.
        compile: ``torch.compile`` the model.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        world: World,
        *,
        amp: bool = False,
        grad_clip: float = 0.0,
        ema: Ema | None = None,
        compile: bool = False,
    ) -> None:
        self.model, self.loss, self.optimizer, self.schedule, self.world = model, loss, optimizer, schedule, world
        self.amp, self.grad_clip, self.ema, self.compile = amp, grad_clip, ema, compile
        self.parameters = [p for g in optimizer.param_groups for p in g["params"]]
        self.forward: Any = model
        self.parallel: DistributedDataParallel | None = None
        self.failures = 0  # not finite since the last update
        self.step = 0
        self._wrapped, self._own_fault = False, True
        self._statistics = [b for m in model.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]

    def __call__(self, batches: Sequence[Batch], step: int, first_batch: int) -> StepResult:
        """One optimizer step (number ``step``) over ``batches``, whose first is number ``first_batch`` of its epoch.

        Gradients are means over the batches that could be used. A batch whose loss is not finite is dropped,
        once; when no update succeeds before the next such batch, the run stops.

        Raises:
            OpenRecError: loss or gradient not finite, twice in a row.
        """
        result, used, synced, self.step = StepResult(lr=self.optimizer.param_groups[0]["lr"]), 0, False, step
        self.optimizer.zero_grad(set_to_none=True)
        for i, batch in enumerate(batches):
            last = i == len(batches) - 1
            tensors, weight = self._share(batch)
            if tensors is None:
                continue
            losses = self._backward(tensors, weight, last, result)
            if losses is None:
                self._not_finite("loss", first_batch + i, [batch])
                continue
            used, synced = used + 1, last and self.parallel is not None
            result.samples += len(batch) if weight else 0
            result.batch = batch if weight else None
            for name, value in losses.items():
                result.losses[name] = result.losses.get(name, 0.0) + value
        result.losses = {name: value / max(1, used) for name, value in result.losses.items()}
        if used:
            if not synced:
                average_gradients(self.parameters, self.world)
            self._update(result, used, first_batch, batches)
        self.schedule.step()
        if result.updated and not self._wrapped:
            self._wrap()
        return result

    # -- one batch ---------------------------------------------------------------------------------

    def _share(self, batch: Batch) -> tuple[list[Tensor] | None, float]:
        """This process's tensors and the weight of their loss; ``None`` when no process has a usable sample.

        The weights make the mean over processes the mean over all samples, whatever was skipped where. A
        process without samples takes part with one sample of another process and weight 0, because the others
        wait for it in every collective operation.
        """
        own = len(batch) if batch.tensors and batch.weight > 0 else 0
        counts = [row[0] for row in gather_numbers([own], self.world)]
        total = sum(counts)
        if total == 0:
            return None, 0.0
        tensors = batch.to(self.world.device, non_blocking=True).tensors
        if 0 in counts:
            source = next(rank for rank, n in enumerate(counts) if n)
            sample = broadcast(
                [t[:1].cpu() for t in tensors] if self.world.rank == source else None, self.world, source
            )
            tensors = tensors if own else [t.to(self.world.device) for t in sample]
        return tensors, own * self.world.size / total

    def _backward(
        self, tensors: list[Tensor], weight: float, last: bool, result: StepResult
    ) -> dict[str, float] | None:
        """Add a batch's gradients; its losses (mean over processes), or ``None`` when they are not finite."""
        before = [b.clone() for b in self._statistics]
        if self.parallel is None:
            broadcast_buffers(self.model, self.world)
        quiet = self.parallel.no_sync() if self.parallel is not None and not last else nullcontext()
        with quiet, left_out(weight == 0):
            with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.amp):
                preds = self.forward(tensors[0], data=tensors[1:])
                losses: dict[str, Tensor] = self.loss(preds, tensors)
            values = torch.stack([v.detach().float().mean() for v in losses.values()]).tolist()
            finite = all(math.isfinite(v) for v in values)
            share = weight / self.world.size
            # NaN times 0 is NaN: a process that does not count must not spoil the mean
            sums = sum_over_ranks([float(not finite), *(v * share if share else 0.0 for v in values)], self.world)
            if sums[0]:
                self._own_fault = not finite
                for buffer, value in zip(self._statistics, before):
                    buffer.copy_(value)
                return None
            (losses["loss"] * weight if weight != 1 else losses["loss"]).backward()
        result.preds = preds
        return dict(zip(losses, sums[1:]))

    # -- the update --------------------------------------------------------------------------------

    def _update(self, result: StepResult, used: int, first_batch: int, batches: Sequence[Batch]) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if used > 1:
            torch._foreach_div_(gradients, float(used))
        norm = torch.nn.utils.get_total_norm(gradients)
        result.grad_norm = float(norm)
        if not math.isfinite(result.grad_norm):
            self.optimizer.zero_grad(set_to_none=True)
            self._own_fault = True
            self._not_finite("gradient", first_batch, batches)
            return
        if self.grad_clip > 0:
            torch.nn.utils.clip_grads_with_norm_(
                [p for p in self.parameters if p.grad is not None], self.grad_clip, norm
            )
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        self.failures, result.updated = 0, True

    def _not_finite(self, what: str, number: int, batches: Sequence[Batch]) -> None:
        """Count a failure; the second one without an update in between ends the run."""
        self.failures += 1
        mine = [name for batch in batches for name in batch.names] if self._own_fault else []
        names = [name for part in gather(mine, self.world) for name in part]
        shown = ", ".join(names[:64]) + (f" and {len(names) - 64} more" if len(names) > 64 else "")
        where = f"step {self.step}, batch {number} of the epoch, samples: {shown}"
        if self.failures == 1:
            logger.warning("the %s is not finite in %s; going on without this batch.", what, where)
            return
        raise OpenRecError(
            f"the {what} is not finite, for the second time in a row: {where}.\nThe weights were not touched; the last "
            "checkpoint in Global.output_dir is good. Look at these samples, lower Optimizer.lr, set "
            "Global.grad_clip_val (e.g. 5.0) or Loss.zero_infinity: True, and start the same command again."
        )

    def _wrap(self) -> None:
        """After the first step it is known which parameters the loss reaches; only then the model is wrapped."""
        self._wrapped = True
        names = {id(p): n for n, p in self.model.named_parameters()}
        idle = [names.get(id(p), "?") for p in self.parameters if p.requires_grad and p.grad is None]
        if idle and any(p.grad is not None for p in self.parameters):
            logger.warning("%d parameters get no gradient and keep their values (e.g. %s).", len(idle), idle[0])
        if self.world.size > 1:
            devices = [self.world.device] if self.world.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.model, device_ids=devices, find_unused_parameters=bool(idle))
            self.forward = self.parallel
        if self.compile:
            self.forward = compiled(self.forward)


def compiled(module: nn.Module) -> Any:
    """``torch.compile`` with room for one graph per ratio bucket."""
    config = torch._dynamo.config  # type: ignore[attr-defined]
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(config, name):
            setattr(config, name, max(64, getattr(config, name)))
            break
    return torch.compile(module)
