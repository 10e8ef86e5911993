"""Learning-rate schedules: each one is a formula for the rate at optimizer step t.

Names, arguments and formulas are those of OpenOCR (https://github.com/Topdu/OpenOCR, Apache-2.0);
``OneCycleLR`` follows Smith & Topin, "Super-Convergence" (2018) as in torch.optim, ``CdistNetLR`` the
inverse-square-root rule of "Attention Is All You Need". Two differences: ``warmup_epoch`` of ``StepLR``
and ``MultiStepLR`` counts epochs as everywhere else (OpenOCR compares it with steps, which
``warmup_in_steps: True`` brings back), and t counts optimizer steps, not micro-batches.

A schedule is a function of t alone, so a run resumed at step t has exactly the rates of one that was
never interrupted, and a checkpoint needs to hold nothing but t.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from openrec.errors import ConfigError

logger = logging.getLogger("openrec")


class Schedule:
    """Base: every group's rate is its own start rate times ``factor(t)``.

    Args:
        optimizer: its groups' ``lr`` (or ``initial_lr``) are the start rates.
        lr: the start rate that the formula's absolute numbers (``lr_end``, ``eta_min``) refer to.
        epochs, step_each_epoch: length of the run: T = epochs * step_each_epoch optimizer steps.
        warmup_epoch: epochs of a linear rise from 0 (steps with ``warmup_in_steps``).
        last_epoch: the step that was last done; -1 starts at step 0.

    Raises:
        ConfigError: a length below one step, or a negative warm-up.
    """

    def __init__(
        self, optimizer: Optimizer, *, lr: float, epochs: int, step_each_epoch: int, warmup_epoch: float = 0,
        warmup_in_steps: bool = False, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        if epochs < 1 or step_each_epoch < 1:
            raise ConfigError(f"schedule: {epochs} epochs of {step_each_epoch} steps; both must be at least 1.")
        _refuse_negative(warmup_epoch)
        if warmup_epoch > epochs:
            _warn_long_warmup(f"warmup_epoch {warmup_epoch}", f"{epochs} epochs")
        self.optimizer, self.lr = optimizer, lr
        self.steps_per_epoch, self.total_steps = step_each_epoch, epochs * step_each_epoch
        self.warmup_steps = warmup_epoch * (1 if warmup_in_steps else step_each_epoch)
        self.base_lrs = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]
        self.last_epoch = max(0, last_epoch)
        self._apply()

    def factor(self, t: int) -> float:
        """The multiplier of the start rate at step ``t`` (from 0)."""
        if t < self.warmup_steps:
            return t / max(1, self.warmup_steps)
        return self.after_warmup(t)

    def after_warmup(self, t: int) -> float:
        raise NotImplementedError

    def step(self) -> None:
        """Go on to the next optimizer step.

        Raises:
            ConfigError: the schedule is over; a run has exactly ``total_steps`` steps.
        """
        if self.last_epoch >= self.total_steps:
            raise ConfigError(
                f"LRScheduler: step {self.last_epoch + 1} of a schedule of {self.total_steps} steps. "
                "Raise Global.epoch_num to train longer."
            )
        self.last_epoch += 1
        self._apply()

    def go_to(self, step: int) -> None:
        """Take the rate of a step anywhere in the schedule, for runs that end by the clock."""
        self.last_epoch = min(step, self.total_steps - 1)
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The rates now in force, one per group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch, "total_steps": self.total_steps, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the step that ``state`` names; the length stays that of this run's config."""
        self.last_epoch = min(int(state["last_epoch"]), self.total_steps)
        self._apply()

    def _apply(self) -> None:
        # The step behind the last one has no rate of its own; it keeps the last one's.
        t = min(self.last_epoch, self.total_steps - 1)
        factor = self.factor(t)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs):
            group["lr"] = base * factor
            group["initial_lr"] = base
        self.apply_momentum(t)

    def apply_momentum(self, t: int) -> None:
        """For schedules that move the momentum too."""


def _warn_long_warmup(warmup: str, run: str) -> None:
    logger.warning("LRScheduler.%s is longer than the run (%s): the rate rises to the end and stays low.", warmup, run)


def _refuse_negative(warmup: float, name: str = "warmup_epoch") -> None:
    if warmup < 0:
        raise ConfigError(f"LRScheduler.{name}: expected at least 0, got {warmup}.")


def _cosine(p: float) -> float:
    """1 -> 0 while ``p`` goes 0 -> 1, flat at both ends."""
    return (1 + math.cos(math.pi * p)) / 2


class StepLR(Schedule):
    """Times ``gamma`` every ``step_size`` epochs."""

    def __init__(
        self, optimizer: Optimizer, *, lr: float, epochs: int, step_each_epoch: int, step_size: int,
        warmup_epoch: float = 0, gamma: float = 0.1, warmup_in_steps: bool = False, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        if not step_size > 0:
            raise ConfigError(f"LRScheduler.step_size: expected a positive number of epochs, got {step_size}.")
        self.every, self.gamma = step_size * step_each_epoch, gamma
        super().__init__(
            optimizer, lr=lr, epochs=epochs, step_each_epoch=step_each_epoch, warmup_epoch=warmup_epoch,
            warmup_in_steps=warmup_in_steps, last_epoch=last_epoch,
        )  # fmt: skip

    def after_warmup(self, t: int) -> float:
        return self.gamma ** (t // self.every)


class MultiStepLR(Schedule):
    """Times ``gamma`` at each of the ``milestones`` (epochs)."""

    def __init__(
        self, optimizer: Optimizer, *, lr: float, epochs: int, step_each_epoch: int, milestones: Sequence[float],
        warmup_epoch: float = 0, gamma: float = 0.1, warmup_in_steps: bool = False, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self.milestones, self.gamma = [m * step_each_epoch for m in milestones], gamma
        super().__init__(
            optimizer, lr=lr, epochs=epochs, step_each_epoch=step_each_epoch, warmup_epoch=warmup_epoch,
            warmup_in_steps=warmup_in_steps, last_epoch=last_epoch,
        )  # fmt: skip

    def after_warmup(self, t: int) -> float:
        return self.gamma ** sum(m <= t for m in self.milestones)


class ConstLR(Schedule):
    """Linear warm-up, then constant."""

    def after_warmup(self, t: int) -> float:
        return 1.0


class LinearLR(Schedule):
    """Linear warm-up, then linearly to 0 at step T."""

    def after_warmup(self, t: int) -> float:
        return max(0.0, (self.total_steps - t) / (self.total_steps - self.warmup_steps))


class CosineAnnealingLR(Schedule):
    """Linear warm-up, then half a cosine to 0 at step T."""

    def after_warmup(self, t: int) -> float:
        return max(0.0, _cosine((t - self.warmup_steps) / (self.total_steps - self.warmup_steps)))


class PolynomialLR(Schedule):
    """Linear warm-up, then ``(1 - progress) ** power`` down to ``lr_end``."""

    def __init__(
        self, optimizer: Optimizer, *, lr: float, epochs: int, step_each_epoch: int, lr_end: float = 1e-7,
        power: float = 1.0, warmup_epoch: float = 0, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self.lr_end, self.power = lr_end, power
        super().__init__(
            optimizer, lr=lr, epochs=epochs, step_each_epoch=step_each_epoch, warmup_epoch=warmup_epoch,
            last_epoch=last_epoch,
        )  # fmt: skip

    def after_warmup(self, t: int) -> float:
        left = 1 - (t - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return ((self.lr - self.lr_end) * left**self.power + self.lr_end) / self.lr


class OneCycleLR(Schedule):
    """Half a cosine up from lr/25 to lr over ``warmup_epoch`` epochs, then one down to lr/250000.

    Args:
        cycle_momentum: move the momentum (or beta1) from 0.95 down to 0.85 and back, against the rate.
    """

    div_factor, final_div_factor = 25.0, 1e4
    max_momentum, base_momentum = 0.95, 0.85

    def __init__(
        self, optimizer: Optimizer, *, lr: float, epochs: int, step_each_epoch: int, warmup_epoch: float = 1.0,
        cycle_momentum: bool = True, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self.cycle_momentum = cycle_momentum
        if cycle_momentum and not ({"betas", "momentum"} & set(optimizer.defaults)):
            raise ConfigError(
                f"LRScheduler.cycle_momentum: {type(optimizer).__name__} has no momentum. Set cycle_momentum: False."
            )
        _refuse_negative(warmup_epoch)
        if warmup_epoch > epochs:
            _warn_long_warmup(f"warmup_epoch {warmup_epoch}", f"{epochs} epochs")
        total = epochs * step_each_epoch
        self.peak = warmup_epoch / max(1, epochs) * total - 1  # the step of the highest rate, not always whole
        super().__init__(optimizer, lr=lr, epochs=epochs, step_each_epoch=step_each_epoch, last_epoch=last_epoch)

    def _between(self, t: int, start: float, top: float, end: float) -> float:
        last = self.total_steps - 1
        if t <= self.peak and self.peak > 0:
            return top + (start - top) * _cosine(t / self.peak)
        if last <= self.peak:
            return top
        return end + (top - end) * _cosine((t - self.peak) / (last - self.peak))

    def after_warmup(self, t: int) -> float:
        start = 1 / self.div_factor
        return self._between(t, start, 1.0, start / self.final_div_factor)

    def apply_momentum(self, t: int) -> None:
        if not self.cycle_momentum:
            return
        momentum = self._between(t, self.max_momentum, self.base_momentum, self.max_momentum)
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


class CdistNetLR(Schedule):
    """``min(t^-0.5, t * n_warmup_steps^-1.5)`` for ``step2_epoch`` epochs, then 1e-5."""

    def __init__(
        self, optimizer: Optimizer, *, lr: float, epochs: int, step_each_epoch: int, n_warmup_steps: int = 10000,
        step2_epoch: float = 7, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        self.n_warmup_steps, self.step2 = n_warmup_steps, step2_epoch * step_each_epoch
        super().__init__(optimizer, lr=lr, epochs=epochs, step_each_epoch=step_each_epoch, last_epoch=last_epoch)

    def after_warmup(self, t: int) -> float:
        if t >= self.step2:
            return 1e-5 / self.lr
        return min(t**-0.5, t * self.n_warmup_steps**-1.5) if t else 0.0


class WarmupCosineLR(Schedule):
    """Linear from 1e-7 of the rate over ``warmup_steps`` optimizer steps, then half a cosine to ``eta_min``."""

    start_factor = 1e-7

    def __init__(
        self, optimizer: Optimizer, *, lr: float, epochs: int, step_each_epoch: int, warmup_steps: int = 0,
        eta_min: float = 0.0, last_epoch: int = -1,
    ) -> None:  # fmt: skip
        _refuse_negative(warmup_steps, "warmup_steps")
        if warmup_steps > epochs * step_each_epoch:
            _warn_long_warmup(f"warmup_steps {warmup_steps}", f"{epochs * step_each_epoch} steps")
        self.ramp, self.eta_min = warmup_steps, eta_min
        super().__init__(optimizer, lr=lr, epochs=epochs, step_each_epoch=step_each_epoch, last_epoch=last_epoch)

    def after_warmup(self, t: int) -> float:
        if t < self.ramp:
            return self.start_factor + (1 - self.start_factor) * t / self.ramp
        end = self.eta_min / self.lr
        return end + (1 - end) * _cosine((t - self.ramp) / (self.total_steps - self.ramp))
