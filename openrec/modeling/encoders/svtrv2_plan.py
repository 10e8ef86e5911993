"""Which blocks stand where in an SVTRv2 encoder, and whether they fit together: checked before anything is built.

A mixer has an input rank and an output rank (4: map ``[B, C, H, W]``, 3: tokens ``[B, N, C]``). The rank is tracked
from the stem through all stages; a mixer that does not fit is refused with the repair.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from openrec.errors import ConfigError
from openrec.registry import nearest


class Mixer(NamedTuple):
    """Ranks of a mixer; ``pre_norm``: its block leaves the residual stream without a closing norm.

    ``target`` is the block's ``module:Class`` (see ``svtrv2_mixers``; empty: a block of the skeleton itself) and
    ``fixed`` are arguments that make this name a variant of it.
    """

    in_rank: int
    out_rank: int
    pre_norm: bool = False
    target: str = ""
    fixed: Mapping[str, Any] = {}


_HERE = "openrec.modeling.encoders."
MIXERS: dict[str, Mixer] = {
    "Conv": Mixer(4, 4),
    "Mamba": Mixer(4, 4, pre_norm=True),
    "FMamba": Mixer(4, 4, pre_norm=True),
    "Global": Mixer(3, 3),
    "FGlobal": Mixer(4, 3),
    "FGlobalRe2D": Mixer(4, 4),
    "True2D": Mixer(4, 4, True, _HERE + "true2d:True2DBlock"),
    "True2DShifted": Mixer(4, 4, True, _HERE + "true2d:True2DBlock", {"shift": True, "index": None}),
    "Mamba1D": Mixer(4, 4, True, _HERE + "mamba1d:Mamba1DBlock", {"bidirectional": False}),
    "BiMamba1D": Mixer(4, 4, True, _HERE + "mamba1d:Mamba1DBlock", {"bidirectional": True}),
    "DAT": Mixer(4, 4, True, _HERE + "dat:DATBlock"),
    "ReAttn": Mixer(4, 4, True, _HERE + "reattn:ReAttnBlock"),
}


class Plan(NamedTuple):
    mixers: list[list[str]]  # per stage, per block
    ranks: list[int]  # rank at the end of each stage
    first_rank: int  # rank after the stem
    pre_norm: bool  # the last block leaves the residual stream bare


def make_plan(mixer: Sequence[str | Sequence[str]], depths: Sequence[int], known: Mapping[str, Mixer] = MIXERS) -> Plan:
    """Check ``mixer`` against ``depths`` and track the rank.

    Raises:
        ConfigError: unknown name, wrong length, or a mixer that meets the wrong rank.
    """
    if isinstance(mixer, str) or len(mixer) != len(depths):
        raise ConfigError(f"Encoder.mixer must hold one list per stage ({len(depths)}, as depths), got {mixer!r}.")
    stages = [parse_mixers(stage, known, f"Encoder.mixer[{i}]") for i, stage in enumerate(mixer)]
    for i, (names, depth) in enumerate(zip(stages, depths)):
        if len(names) != depth:
            raise ConfigError(
                f"Encoder.mixer[{i}] names {len(names)} blocks, but depths[{i}] is {depth}: {names}. Change one."
            )
    rank = first_rank = 3 if known[stages[0][0]].in_rank == 3 else 4
    before, flattened, ranks = "the stem", "", []
    for i, names in enumerate(stages):
        for j, name in enumerate(names):
            if known[name].in_rank != rank:
                raise ConfigError(_misfit(i, j, name, known[name], rank, before, flattened))
            if rank == 4 and known[name].out_rank == 3:
                flattened = f"stage {i} block {j} ({name})"
            rank, before = known[name].out_rank, f"{name} (stage {i} block {j})"
        ranks.append(rank)
    return Plan(stages, ranks, first_rank, known[stages[-1][-1]].pre_norm)


def parse_mixers(stage: str | Sequence[str], known: Mapping[str, Mixer], where: str) -> list[str]:
    """Names of one stage: a list, or the compact form ``'Conv*4, Mamba*2'`` (also as list entries)."""
    names = []
    for part in stage.split(",") if isinstance(stage, str) else stage:
        match = re.fullmatch(r"\s*(\w+)\s*(?:\*\s*(\d+)\s*)?", part) if isinstance(part, str) else None
        if match is None:
            raise ConfigError(
                f"{where}: {part!r} is no mixer; write a name, or a compact string such as 'Conv*4, Mamba*2'."
            )
        if match[1] not in known:
            raise ConfigError(f'{where}: no mixer is called "{match[1]}".{nearest(match[1], known)}')
        names += [match[1]] * int(match[2] or 1)
    if not names:
        raise ConfigError(f"{where} is empty: every stage needs at least one block.")
    return names


def _misfit(i: int, j: int, name: str, mixer: Mixer, rank: int, before: str, flattened: str) -> str:
    if name == "FGlobal":
        repair = "already flattened; use Global"
    elif rank == 3:
        by = f"at {flattened}" if flattened else "by the stem, because the first mixer is Global"
        repair = f"the map was flattened {by}; use FGlobalRe2D there to keep 2-D"
    else:
        repair = "use FGlobal for the first attention block after a 2-D block"
    return (
        f'Encoder.mixer: stage {i} block {j} is "{name}", which takes rank {mixer.in_rank}, but after {before} the '
        f"features have rank {rank}: {repair}"
    )


def per_block(
    name: str, given: Sequence[Sequence[int]] | None, default: Sequence[Sequence[int]], depths: Sequence[int], fill: int
) -> tuple[list[list[int]], list[int]]:
    """``num_convs`` or ``kernel_sizes``: a stage's list counts when it is as long as the stage, else ``fill``.

    Returns:
        the numbers, and the stages whose *given* list was not used.
    """
    lists = list(default) if given is None else list(given)
    if given is not None and len(lists) != len(depths):
        raise ConfigError(f"Encoder.{name} must hold one list per stage ({len(depths)}), got {len(lists)}: {given}.")
    lists += [[]] * (len(depths) - len(lists))
    numbers = [list(map(int, part)) if len(part) == d else [fill] * d for part, d in zip(lists, depths)]
    unused = [i for i, d in enumerate(depths) if given is not None and len(lists[i]) != d]
    return numbers, unused


def check_stages(depths: Sequence[int], **lists: Sequence) -> None:
    """Refuse per-stage lists of different lengths, and empty stages."""
    for name, values in lists.items():
        if len(values) != len(depths):
            raise ConfigError(
                f"Encoder.{name} has {len(values)} entries, but depths has {len(depths)}: {values}. Give one for each."
            )
    if not depths or min(depths) < 1:
        raise ConfigError(f"Encoder.depths: every stage needs at least one block, got {depths}.")


def check_division(dims: Sequence[int], divisors: Sequence[int], what: str) -> None:
    """Refuse a stage whose channels cannot be split into equal parts."""
    for i, (dim, n) in enumerate(zip(dims, divisors)):
        if n < 1 or dim % n:
            near = f"; {max(1, round(dim / n)) * n} is near" if n > 0 else ""
            raise ConfigError(
                f"Encoder.dims[{i}] = {dim} is not divisible by {what} = {n}. "
                f"Choose a multiple{near}, or another {what}."
            )
