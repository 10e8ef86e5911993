"""Mixers that live in files of their own: from the name in ``svtrv2_plan.MIXERS`` and ``mixer_cfg`` to the block.

A new mixer is a class and a line in ``MIXERS``. Its constructor names what it wants to know of ``BlockOptions.offer``
(``dim``, ``num_heads``, ``map_size``, ...); what else it names is the user's, under ``mixer_cfg: {Name: {...}}``. Names
in its attribute ``per_stage`` may be given there as a list of one value per stage.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from openrec.config_kinds import argument_problems
from openrec.errors import ConfigError
from openrec.modeling.encoders.svtrv2_plan import MIXERS
from openrec.registry import nearest, parameters

Arguments = Mapping[str, Any]


def mixer_class(name: str) -> Callable[..., nn.Module]:
    """The block class of a mixer with a ``target``."""
    module, _, attribute = MIXERS[name].target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def build_mixer(name: str, offered: Arguments, given: Arguments) -> nn.Module:
    """One block: ``offered`` fills what the constructor names, the user's ``given`` wins."""
    target = mixer_class(name)
    known = parameters(target)
    return target(**{**{k: v for k, v in offered.items() if k in known}, **MIXERS[name].fixed, **given})


def check_mixer_cfg(mixer_cfg: Mapping[str, Arguments], offered: Iterable[str]) -> None:
    """Refuse arguments that a mixer does not take.

    Raises:
        ConfigError: unknown mixer or key, with the nearest match; or a key that the encoder itself fills.
    """
    own = {"dim", "map_size", "drop_path", "index"} & set(offered)
    for mixer, arguments in mixer_cfg.items():
        if not MIXERS[mixer].target:
            raise ConfigError(f"Encoder.mixer_cfg.{mixer}: this mixer is built from the encoder's own keys.")
        target = mixer_class(mixer)
        known = [key for key in parameters(target) if key not in own and key not in MIXERS[mixer].fixed]
        for key in arguments:
            if key not in known:
                raise ConfigError(f"Encoder.mixer_cfg.{mixer}.{key}: {mixer} has no such key.{nearest(key, known)}")
        per_stage = getattr(target, "per_stage", ())
        alike = {k: v for k, v in arguments.items() if not (k in per_stage and _is_list(v))}
        check_values(target, alike, mixer)


def check_values(target: Any, arguments: Arguments, mixer: str) -> None:
    """Refuse arguments of a wrong kind or size for the block ``target``."""
    problems = argument_problems(target, arguments, f"Encoder.mixer_cfg.{mixer}")
    if problems:
        raise ConfigError("\n".join(problems))


def stage_arguments(mixer_cfg: Mapping[str, Arguments], stage: int, stages: int) -> dict[str, dict[str, Any]]:
    """``mixer_cfg`` as one stage sees it: of a ``per_stage`` list that is as long as there are stages, one value."""
    here: dict[str, dict[str, Any]] = {}
    for mixer, arguments in mixer_cfg.items():
        per_stage = getattr(mixer_class(mixer), "per_stage", ())
        here[mixer] = {
            key: value[stage] if key in per_stage and _is_list(value) and len(value) == stages else value
            for key, value in arguments.items()
        }
    return here


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def map_sizes(max_sz: Sequence[int], sub_k: Sequence[Sequence[int]], stages: int) -> list[tuple[int, int]]:
    """(height, width) of the map in each stage, for the largest image."""
    h, w = ((n + 3) // 4 for n in max_sz)
    sizes = [(h, w)]
    for i in range(stages - 1):
        h, w = (-(-n // k) for n, k in zip(sizes[-1], sub_k[i]))
        sizes.append((h, w))
    return sizes
