"""Where a run stands: what a checkpoint holds beside the weights, how it is saved and continued."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openrec import __version__
from openrec.charset import Charset
from openrec.checkpoint import load_exactly, load_weights, read_checkpoint, save_checkpoint
from openrec.engine.distributed import World, gather
from openrec.engine.ema import Ema
from openrec.engine.logger import JsonLines
from openrec.engine.meters import Medians
from openrec.engine.rng import rng_state, set_rng_state
from openrec.errors import CheckpointError
from openrec.optimizer import Schedule

logger = logging.getLogger("openrec")
FORMAT = 1  # of the keys that are this project's own
# Keys whose change makes no other run: where it runs, what it prints and keeps.
_FREE = {
    "config", "filename", "local_rank", "eval", "Global.device", "Global.output_dir", "Global.checkpoints",
    "Global.pretrained_model", "Global.auto_resume", "Global.progress_bar", "Global.use_tensorboard",
    "Global.distributed", "Global.max_steps", "Global.max_minutes", "Global.needs",
    "Global.diagnose", "Global.diagnose_step",
}  # fmt: skip


@dataclass
class Progress:
    """Position and results of a run.

    Attributes:
        epoch: now, from 1.
        batch: batches of this epoch that are done, per process.
        epoch_done: the epoch's last batch, evaluation and files are done.
        step: optimizer steps done.
        epoch_start: ``step`` when the epoch began.
        evaluated: the step of the last evaluation; -1: none yet.
        best: numbers of the best evaluation so far.
        skipped: training samples dropped in this epoch: ``{reason: [names]}``.
        log_size: bytes of ``log.jsonl`` when the checkpoint was written.
    """

    epoch: int = 1
    batch: int = 0
    epoch_done: bool = False
    step: int = 0
    epoch_start: int = 0
    evaluated: int = -1
    best: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    log_size: int = 0

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.epoch_done = self.epoch + 1, 0, False
        self.epoch_start, self.skipped = self.step, {}


def due(rule: Any, now: int) -> bool:
    """``[start, every]`` or ``every``: ``now > start`` and a whole number of ``every`` behind ``start``."""
    if not rule:
        return False
    start, every = rule if isinstance(rule, (list, tuple)) else (0, rule)
    return now > start and (now - start) % every == 0


@dataclass
class RunParts:
    """All that has state in a run."""

    config: Mapping[str, Any]
    charset: Charset
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    medians: Medians
    world: World
    batches_per_epoch: int
    log: JsonLines
    ema: Ema | None = None
    progress: Progress = field(default_factory=Progress)


def run_state(parts: RunParts, *, with_optimizer: bool = True) -> dict[str, Any]:
    """The content of a checkpoint; every process has to call it.

    Without the optimizer (``best.pth``) the weights are those that were evaluated: the average where there is
    one.
    """
    p, average = parts.progress, parts.ema
    state: dict[str, Any] = {
        "epoch": p.epoch,
        "global_step": p.step,
        "state_dict": parts.model.state_dict(),
        "optimizer": parts.optimizer.state_dict() if with_optimizer else None,
        "scheduler": parts.schedule.state_dict() if with_optimizer else None,
        "config": parts.config,
        "metrics": p.best,
        "format": FORMAT,
        "version": __version__,
        "charset": parts.charset.state(),
    }
    if not with_optimizer:
        return {**state, "state_dict": average.weights} if average is not None else state
    skipped = gather(p.skipped, parts.world)
    state["ema"] = average.state() if average is not None else None
    state["rng"] = gather(rng_state(), parts.world)
    state["progress"] = {
        "batch": p.batch,
        "epoch_done": p.epoch_done,
        "epoch_start": p.epoch_start,
        "evaluated": p.evaluated,
        "skipped": skipped,
        "medians": parts.medians.state(),
        "batches_per_epoch": parts.batches_per_epoch,
        "world_size": parts.world.size,
        "log_size": parts.log.size(),
    }
    return state


def save_run(parts: RunParts, *paths: Path, with_optimizer: bool = True) -> None:
    """Write the checkpoint under each of ``paths``; every process has to call it."""
    state = run_state(parts, with_optimizer=with_optimizer)
    if parts.world.is_main:
        for path in paths:
            save_checkpoint(state, path)


# ---- continuing ------------------------------------------------------------------------------------


def resume_run(parts: RunParts, path: Path) -> None:
    """Continue exactly where the checkpoint at ``path`` was written.

    A checkpoint of OpenOCR, or ``best.pth`` without optimizer, continues after its epoch.

    Raises:
        CheckpointError: unreadable, or of another model, dictionary or optimizer.
    """
    state = read_checkpoint(path)
    where = f'checkpoint "{path}"'
    _same_run(parts, state, path)
    load_exactly(parts.model, state["state_dict"], where)
    own, progress = state.get("progress"), parts.progress
    progress.epoch = int(state.get("epoch", 0))
    progress.best = dict(state.get("metrics") or {})
    if state.get("optimizer") is None:
        logger.warning("%s holds no optimizer: weights, epoch and metrics continue, the optimizer starts anew.", where)
    else:
        _load_optimizer(parts.optimizer, state["optimizer"], where)
    if own is None:
        _after_epoch(parts)
    else:
        _inside_epoch(parts, state, own)
    parts.schedule.load_state_dict({"last_epoch": progress.step})
    if parts.ema is not None:
        if state.get("ema"):
            parts.ema.load(state["ema"])
        else:
            logger.warning("%s holds no average of the weights; it starts from its weights.", where)
            parts.ema.load({"updates": 0, "state_dict": parts.model.state_dict()})


def _after_epoch(parts: RunParts) -> None:
    """A checkpoint without position: its epoch is over."""
    p = parts.progress
    steps = parts.schedule.steps_per_epoch
    p.batch, p.step, p.epoch_done = parts.batches_per_epoch, p.epoch * steps, True
    p.step = min(p.step, parts.schedule.total_steps)
    p.epoch_start = max(0, p.step - steps)
    logger.info("no position inside an epoch in this checkpoint: going on after epoch %d, step %d.", p.epoch, p.step)


def _inside_epoch(parts: RunParts, state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    p, world = parts.progress, parts.world
    p.step, p.batch, p.epoch_done = int(state["global_step"]), int(own["batch"]), bool(own["epoch_done"])
    p.epoch_start, p.evaluated = int(own["epoch_start"]), int(own["evaluated"])
    p.log_size = int(own["log_size"])
    parts.medians.load(own["medians"])
    before = (int(own["batches_per_epoch"]), int(own["world_size"]))
    if before == (parts.batches_per_epoch, world.size):
        p.skipped = dict(own["skipped"][world.rank])
        set_rng_state(state["rng"][world.rank])
        return
    # Other data, batch size or number of processes: the same share of the epoch counts as done.
    p.batch = round(p.batch * parts.batches_per_epoch / max(1, before[0]))
    done = (p.epoch - 1 + p.batch / max(1, parts.batches_per_epoch)) * parts.schedule.steps_per_epoch
    logger.warning(
        "the checkpoint was written with %d batches per epoch on %d processes, now %d on %d: the same share of the "
        "epoch counts as done, but the run is not the one it would have been. Step %d becomes %d.",
        *before, parts.batches_per_epoch, world.size, p.step, round(done),
    )  # fmt: skip
    p.step = min(round(done), parts.schedule.total_steps)
    p.epoch_start = (p.epoch - 1) * parts.schedule.steps_per_epoch


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], where: str) -> None:
    """Momenta from the checkpoint, options (decay, betas, ...) from the config."""
    options = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        raise CheckpointError(
            f"{where}: its optimizer does not fit ({error}). Continue with the Optimizer section it was made with "
            "(name, filter_bias_and_bn, lr_mult), or start a new run: give the file as Global.pretrained_model and "
            "choose another Global.output_dir."
        ) from error
    for group, own in zip(optimizer.param_groups, options):
        group.update(own)


def _same_run(parts: RunParts, state: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another model or dictionary; list what else has changed."""
    theirs = state.get("charset")
    if theirs and list(theirs["characters"]) != list(parts.charset.characters):
        source, own = theirs.get("source") or "0-9a-z", parts.charset.source or "0-9a-z"
        raise CheckpointError(
            f'checkpoint "{path}" was trained with another dictionary ({len(theirs["characters"])} characters from '
            f'"{source}", now {len(parts.charset)} from "{own}").' + _CHOICES
        )
    before = dict(_flat(state.get("config") or {}))
    now = dict(_flat(parts.config))
    if not before:
        return
    changed = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k) and k not in _FREE]
    model = [k for k in changed if k.startswith("Architecture.") and not _only_description(k)]
    lines = [f"  {k}: {before.get(k)!r} in the checkpoint, {now.get(k)!r} now" for k in (model or changed)]
    if model and state.get("format") == FORMAT:
        raise CheckpointError(
            f'checkpoint "{path}" belongs to another architecture:\n' + "\n".join(lines[:8]) + "\n" + _CHOICES
        )
    if changed and parts.world.is_main and state.get("format") == FORMAT:
        logger.warning("the config has changed since the checkpoint:\n%s", "\n".join(lines[:20]))


_CHOICES = (
    " Choose one: continue that run with its own config; start a new run in another Global.output_dir; train anew "
    "here with Global.auto_resume: False (latest.pth is then overwritten); or start from its weights with "
    "Global.pretrained_model and another Global.output_dir."
)


def _only_description(key: str) -> bool:
    return key in ("Architecture.model_type", "Architecture.algorithm")


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` -> ``("a.b", 1)``; lists stay whole."""
    if isinstance(value, Mapping) and (value or not place):
        for key, item in value.items():
            yield from _flat(item, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


# ---- starting from weights -------------------------------------------------------------------------


def start_from(model: nn.Module, path: str, charset: Charset) -> None:
    """``Global.pretrained_model``: load what fits and log what became of the rest."""
    state = read_checkpoint(path)
    weights = (state.get("ema") or {}).get("state_dict") or state["state_dict"]
    theirs: dict[str, Any] = state.get("charset") or {}
    differ = bool(theirs) and list(theirs["characters"]) != list(charset.characters)
    mapping = getattr(getattr(model, "decoder", None), "map_characters", None)
    if differ and mapping is not None:
        weights = mapping(weights, theirs["characters"], charset.characters, prefix="decoder.")
    report = load_weights(model, weights, f'pretrained_model "{path}"')
    logger.info("finetune from checkpoint %s", path)
    for line in report.lines():
        logger.info("%s", line)
    if differ and mapping is not None:
        shared = len(set(theirs["characters"]) & set(charset.characters))
        logger.info("another dictionary: %d of %d characters keep what %s knew", shared, len(charset), path)
    elif differ:
        logger.warning(
            "%s was trained with another dictionary (%d characters, here %d): where the shapes agree its head was "
            "loaded all the same and has to learn the new meaning of its classes.",
            path, len(theirs["characters"]), len(charset),
        )  # fmt: skip
