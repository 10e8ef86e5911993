"""Evaluation of a checkpoint, as ``tools/eval_rec.py`` does it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openrec.checkpoint import load_weights, read_checkpoint
from openrec.config import check_config, resolve_charset
from openrec.data import build_loader
from openrec.engine import summary
from openrec.engine.distributed import launched_rank, start_world, stop_world
from openrec.engine.evaluator import Evaluator, split_rule
from openrec.engine.limits import use_bf16
from openrec.engine.logger import log_config, show_bar, start_logging, stop_logging
from openrec.errors import CheckpointError
from openrec.modeling import build_model
from openrec.postprocess import build_post_process

logger = logging.getLogger("openrec")


def checkpoint_of(options: Mapping[str, Any]) -> Path:
    """The file to evaluate: ``pretrained_model``, else ``checkpoints``, else ``output_dir/best.pth``."""
    for name in ("pretrained_model", "checkpoints"):
        if options.get(name):
            return Path(options[name]).expanduser()
    best = Path(options["output_dir"]) / "best.pth"
    if not best.exists():
        raise CheckpointError(
            f'no checkpoint to evaluate: Global.pretrained_model and Global.checkpoints are empty and "{best}" does '
            "not exist. Give one, e.g. -o Global.pretrained_model=output/run/best.pth."
        )
    return best


def evaluate_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluate on ``Eval``; logs and returns the numbers (those under OpenOCR's rule with their prefix).

    Raises:
        OpenRecError: config, data or checkpoint that cannot be used; weights that do not fit the model.
    """
    start_logging(None, launched_rank() == 0)
    check_config(config, "eval")
    config = copy.deepcopy(dict(config))
    options = config["Global"]
    world = start_world(options["device"], join=True)
    try:
        log_config(config)
        charset = resolve_charset(config)
        loader = build_loader(
            config, "Eval", charset=charset, seed=int(options["seed"]), rank=world.rank, world_size=world.size
        )
        logger.info("valid dataloader has %d iters", len(loader))
        post_process = build_post_process(config["PostProcess"], options, charset)
        classes = config["Architecture"]["Decoder"]["out_channels"] = post_process.get_character_num()
        model = build_model(config["Architecture"])
        summary.log_model(model, charset, classes)
        state = read_checkpoint(checkpoint_of(options))
        fill_model(model, state, checkpoint_of(options), charset.characters)
        bar = show_bar(options["progress_bar"], world.is_main)
        amp = use_bf16(options["use_amp"], world.device)
        evaluator = Evaluator(loader, post_process, config["Metric"], world, amp=amp, bar=bar)
        metrics = evaluator.evaluate(model.to(world.device))
        _log(state.get("metrics") or {}, metrics)
        loader.close()
        return metrics
    finally:
        stop_world()
        stop_logging()


def fill_model(model: Any, state: Mapping[str, Any], path: Path, characters: Any) -> None:
    """Load the weights to evaluate (averaged ones where there are any).

    Raises:
        CheckpointError: another dictionary, or weights that leave some of the model as it is.
    """
    theirs = state.get("charset")
    if theirs and list(theirs["characters"]) != list(characters):
        raise CheckpointError(
            f'"{path}" was trained with another dictionary ({len(theirs["characters"])} characters from '
            f'"{theirs.get("source") or "0-9a-z"}"). Give its own Global.character_dict_path and use_space_char.'
        )
    weights = (state.get("ema") or {}).get("state_dict") or state["state_dict"]
    report = load_weights(model, weights, f'checkpoint "{path}"')
    if report.missing or report.reshaped:
        raise CheckpointError(
            f'"{path}" does not fill this model:\n' + "\n".join(report.lines()) + "\nAn evaluation with random weights "
            "would mean nothing. Use the config (and dictionary) the checkpoint was trained with."
        )
    logger.info("resume from checkpoint %s (epoch %s)", path, state.get("epoch", "?"))
    for line in report.lines():
        logger.info("%s", line)


def _log(stored: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    logger.info("metric in ckpt ***************")
    for name, value in stored.items():
        logger.info("%s:%s", name, value)
    main, rule = split_rule(metrics)
    logger.info("metric eval ***************")
    for name, value in main.items():
        logger.info("%s:%s", name, value)
    logger.info("metric eval under OpenOCR's rule ***************")
    for name, value in rule.items():
        logger.info("%s:%s", name, value)
