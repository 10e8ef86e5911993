"""Which parameters are decayed, and at which rate each group learns.

Without ``lr_mult`` the groups and their order are OpenOCR's (https://github.com/Topdu/OpenOCR,
Apache-2.0), so that an optimizer state saved by either project fits the other.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from openrec.errors import ConfigError
from openrec.registry import nearest

logger = logging.getLogger("openrec")


def is_decayed(name: str, parameter: nn.Parameter, exempt: set[str]) -> bool:
    """Whether weight decay applies: not to vectors, biases, flagged parameters and names with an exempt part.

    ``exempt`` is matched as a substring of ``name``; a parameter may also carry ``_no_weight_decay = True``.
    """
    if parameter.ndim <= 1 or name.endswith(".bias") or getattr(parameter, "_no_weight_decay", False):
        return False
    return not any(part in name for part in exempt)


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float | None = None,
    filter_bias_and_bn: bool = False,
    lr_mult: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups for a ``torch.optim`` class.

    Args:
        lr: rate of the groups without a factor of their own.
        weight_decay: ``None`` leaves it to the optimizer class.
        filter_bias_and_bn: with a positive ``weight_decay``: group 0 is not decayed, group 1 is; frozen
            parameters are in neither. Otherwise one group holds everything, frozen parameters too.
        lr_mult: ``{part of a name: factor}``, the first match wins; every factor adds groups behind those two.

    Raises:
        ConfigError: a factor that is not a number of at least 0.
    """
    for pattern, factor in (lr_mult or {}).items():
        if not isinstance(factor, (int, float)) or isinstance(factor, bool) or factor < 0:
            raise ConfigError(f"Optimizer.lr_mult.{pattern}: expected a factor of at least 0, got {factor!r}.")
    split = filter_bias_and_bn and bool(weight_decay)
    exempt = _exempt_names(model) if split else set()
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {("", False): [], ("", True): []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and (split or lr_mult):
            continue
        pattern = next((p for p in lr_mult or () if p in name), "")
        decayed = not split or is_decayed(name, parameter, exempt)
        groups.setdefault((pattern, decayed), []).append(parameter)
    if lr_mult:
        unused = [p for p in lr_mult if not any(key[0] == p for key in groups)]
        if unused:
            parts = list(dict.fromkeys(part for name, _ in model.named_parameters() for part in name.split(".")))
            hint = nearest(unused[0], [part for part in parts if not part.isdigit()])
            misspelt = "Did you mean" in hint  # else a part that this model does without, as a shared config may name
            logger.log(
                logging.WARNING if misspelt else logging.INFO,
                "Optimizer.lr_mult: no parameter name contains %s, so nothing changes there.%s",
                ", ".join(unused),
                hint if misspelt else "",
            )
    return _as_torch(groups, lr=lr, weight_decay=weight_decay, split=split, factors=lr_mult or {})


def _exempt_names(model: nn.Module) -> set[str]:
    names = getattr(model, "no_weight_decay", None)
    return set(names()) if callable(names) else set()


def _as_torch(
    groups: Mapping[tuple[str, bool], list[nn.Parameter]],
    *,
    lr: float,
    weight_decay: float | None,
    split: bool,
    factors: Mapping[str, float],
) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    for (pattern, decayed), parameters in groups.items():
        if not parameters and (pattern or not split):
            continue  # the two plain groups of a split are kept even when empty: they fix the layout
        group: dict[str, Any] = {"params": parameters}
        if split:
            group["weight_decay"] = float(weight_decay or 0) if decayed else 0.0
        if pattern:
            group["lr"] = lr * factors[pattern]
        result.append(group)
    return result
