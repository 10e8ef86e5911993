"""Optimizer and learning-rate schedule of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from openrec import registry
from openrec.errors import ConfigError
from openrec.optimizer.param_groups import param_groups
from openrec.optimizer.schedulers import Schedule

__all__ = ["Schedule", "build_optimizer", "build_scheduler", "param_groups"]


def build_optimizer(
    optim_config: Mapping[str, Any],
    lr_scheduler_config: Mapping[str, Any],
    epochs: int,
    step_each_epoch: int,
    model: nn.Module,
) -> tuple[Optimizer, Schedule]:
    """The optimizer over ``model`` and its schedule.

    Args:
        optim_config: ``name`` (a class of ``torch.optim``), ``lr``, ``weight_decay``, ``filter_bias_and_bn``,
            ``lr_mult`` and the class's own arguments.
        lr_scheduler_config: ``name`` and arguments, see ``openrec.optimizer.schedulers``.
        step_each_epoch: optimizer steps (not micro-batches) per epoch.

    Raises:
        ConfigError: unknown name or argument; a class that needs a closure, other tensors or no groups.
    """
    options = dict(optim_config)
    name, lr = options.pop("name", None), options.pop("lr", None)
    target = getattr(torch.optim, str(name), None)
    known = [n for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, Optimizer)]
    if target is None or name not in known:
        raise ConfigError(f'Optimizer.name: torch.optim has no "{name}".{registry.nearest(str(name), known)}')
    if not isinstance(lr, (int, float)) or isinstance(lr, bool) or lr <= 0:
        raise ConfigError(f"Optimizer.lr: expected a positive number, got {lr!r}.")
    if name == "LBFGS":
        raise ConfigError("Optimizer.name: LBFGS needs the loss several times a step; training here computes it once.")
    weight_decay = options.get("weight_decay")
    groups = param_groups(
        model,
        lr=lr,
        weight_decay=weight_decay,
        filter_bias_and_bn=bool(options.pop("filter_bias_and_bn", False)),
        lr_mult=options.pop("lr_mult", None),
    )
    if any("weight_decay" in group for group in groups):
        options["weight_decay"] = 0.0  # every group has its own
    try:
        optimizer = target(groups, lr=lr, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"Optimizer: torch.optim.{name} refused its arguments: {error}") from error
    return optimizer, build_scheduler(
        lr_scheduler_config, optimizer, lr=lr, epochs=epochs, step_each_epoch=step_each_epoch
    )


def build_scheduler(
    config: Mapping[str, Any], optimizer: Optimizer, *, lr: float, epochs: int, step_each_epoch: int
) -> Schedule:
    """The schedule that ``LRScheduler`` names."""
    return registry.build(
        "scheduler", config, "LRScheduler", optimizer=optimizer, lr=lr, epochs=epochs, step_each_epoch=step_each_epoch
    )
