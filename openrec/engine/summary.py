"""What a run tells about itself before it starts, and about skipped samples after each epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from openrec.charset import Charset
from openrec.data.collate import collate
from openrec.data.types import Batch, Sample
from openrec.engine.logger import metric_text
from openrec.engine.state import Progress
from openrec.errors import ConfigError

logger = logging.getLogger("openrec")
_NAMES_IN_LOG = 200  # per reason; skipped.tsv has all of them


def log_model(model: nn.Module, charset: Charset, classes: Any) -> None:
    """Dictionary, number of classes, number of parameters."""
    characters = "".join(charset.characters)
    shown = characters if len(characters) <= 100 else f"{characters[:60]} ... {characters[-20:]}"
    logger.info(
        "dictionary: %s, %d characters%s: %s",
        charset.source or "0-9 and a-z (no character_dict_path)",
        len(charset),
        ", labels are lower-cased" if charset.lower else "",
        shown,
    )
    logger.info("classes: %s", classes)
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    logger.info("%s", {"Total": total, "Trainable": trainable})


def log_first_sample(loader: Any, post_process: Any, charset: Charset) -> None:
    """Name, label, its numbers and the text they stand for, of the first training sample that can be used.

    Raises:
        ConfigError: the numbers stand for another text: the model would learn what is then read as something else.
    """
    batch = first_batch(loader)
    if batch is None or len(batch.tensors) < 2:
        return
    logger.info("first sample: %s", batch.names[0])
    numbers, text = _label_numbers(batch), _label_text(post_process, batch)
    logger.info("  label %r -> ids %s -> %r", batch.texts[0], numbers, text)
    known = "".join(charset.characters[i] for i in charset.encode(batch.texts[0]))
    if text not in ("?", known) and not charset.is_arabic:  # Arabic is learned in the order in which it is seen
        raise ConfigError(
            f"PostProcess: the label {batch.texts[0]!r} of {batch.names[0]} becomes the numbers {numbers}, which "
            f"{type(post_process).__name__} reads as {text!r}. Choose a label encoder in Train.dataset.transforms and "
            "a PostProcess that belong together, such as CTCLabelEncode and CTCLabelDecode."
        )
    logger.info("  image tensor: %s", list(batch.tensors[0].shape[1:]))


def first_batch(loader: Any, tries: int = 50) -> Batch | None:
    """A batch of the first usable training sample; None when the first ``tries`` are all unusable."""
    sampler = loader.sampler
    sampler.set_epoch(1, 0)
    seen = 0
    for picks in sampler:
        for pick in picks:
            sample = loader.dataset[pick]
            if isinstance(sample, Sample):
                return collate([sample])
            seen += 1
            if seen >= tries:
                return None
    return None


def _label_numbers(batch: Batch) -> list[int]:
    """Of the last label but one (CTC's in a GTC batch), without the filling at its end."""
    flat = [t for t in batch.tensors[1:] if t.dim() == 2 and not t.is_floating_point()]
    if not flat:
        return []
    numbers = flat[-1][0].tolist()
    while len(numbers) > 1 and numbers[-1] == numbers[-2]:
        numbers.pop()
    return numbers


def _label_text(post_process: Any, batch: Batch) -> str:
    """What the label's numbers stand for; "?" where nobody knows, "" where it is nothing."""
    decoder = getattr(post_process, "ctc_label_decode", None)
    try:
        if decoder is not None:
            return decoder.labels([None, batch.tensors[-2], batch.tensors[-1]])[0][0]
        return post_process.labels(batch.tensors)[0][0] if hasattr(post_process, "labels") else "?"
    except IndexError:  # a number behind the end of the table
        return ""


# ---- differences from OpenOCR ----------------------------------------------------------------------

Config = Mapping[str, Any]


def _sampler(config: Config) -> str:
    return str(((config.get("Train") or {}).get("sampler") or {}).get("name"))


def _warmup_steps(config: Config) -> bool:
    schedule = config["LRScheduler"]
    return schedule["name"] in ("StepLR", "MultiStepLR") and bool(schedule.get("warmup_epoch"))


# (whether it concerns this config, what is different)
_DIFFERENCES: list[tuple[Callable[[Config], bool], str]] = [
    (lambda c: c["Global"]["use_amp"] is False, "without AMP, gradients are cleared in every step (T4)"),
    (lambda c: c["Global"]["use_amp"] is True, "bf16 autocast without a loss scaler, in evaluation too (T37)"),
    (
        lambda c: c["Global"]["accumulation_steps"] > 1,
        "accumulation works with and without AMP and ends with the epoch; schedule and global_step count optimizer "
        "steps (T53)",
    ),
    (_warmup_steps, "warmup_epoch counts epochs, not steps (T15); warmup_in_steps: True brings the steps back"),
    (
        lambda c: _sampler(c) == "RatioSampler",
        "every bucket is used completely and every sample once per epoch; the order changes with the epoch (T2, T13)",
    ),
    (lambda c: _sampler(c) == "None", "without a sampler the order changes with the epoch (T34)"),
    (
        lambda c: bool(c.get("Eval")),
        "evaluation scores every sample on its raw label; a second line has the number under its rule (T5, T39)",
    ),
    (
        lambda c: bool(c["Global"]["use_ema"]),
        "use_ema has an effect: averaged weights are evaluated and saved",
    ),
    (
        lambda c: not c["Global"]["use_space_char"],
        "use_space_char: False holds for encoders and decoders alike; labels lose their spaces (T32)",
    ),
]


def log_differences(config: Config) -> None:
    """One line for each behaviour of OpenOCR that this run does not copy."""
    for concerns, text in _DIFFERENCES:
        if concerns(config):
            logger.info("differs from OpenOCR: %s", text)


def log_finished(progress: Progress, epochs: int, directory: Path) -> None:
    """A run that has nothing left to do says so, and what to do next."""
    logger.info(
        "this run is finished: epoch %d of %d, step %d. best metric, %s", progress.epoch, epochs, progress.step,
        metric_text(progress.best),
    )  # fmt: skip
    logger.info(
        "To train longer raise Global.epoch_num; for a new run choose another Global.output_dir, or set "
        "Global.auto_resume: False to start again here. To evaluate: tools/eval_rec.py -c %s",
        directory / "config.yml",
    )


# ---- skipped samples -------------------------------------------------------------------------------


def log_skipped(epoch: int, parts: list[Mapping[str, list[str]]], directory: Path) -> int:
    """The epoch's dropped samples by reason, with their names; all of them go to ``skipped.tsv``.

    Args:
        epoch: from 1; 0 stands for the scan of the labels before the first epoch.
        parts: ``{reason: names}`` of every process.

    Returns:
        How many there were.
    """
    table: dict[str, list[str]] = {}
    for part in parts:
        for reason, names in part.items():
            table.setdefault(reason, []).extend(names)
    total = sum(len(names) for names in table.values())
    if not total:
        return 0
    when = f"epoch {epoch}" if epoch else "before the first epoch"
    logger.warning("%s: %d training samples were skipped:", when, total)
    file = directory / "skipped.tsv"
    with file.open("a", encoding="utf-8") as out:
        for reason, names in sorted(table.items(), key=lambda item: -len(item[1])):
            shown = ", ".join(names[:_NAMES_IN_LOG])
            more = f" and {len(names) - _NAMES_IN_LOG} more, see {file}" if len(names) > _NAMES_IN_LOG else ""
            logger.warning("  %d x %s: %s%s", len(names), reason, shown, more)
            out.writelines(f"{epoch}\t{reason}\t{name}\n" for name in names)
    return total
