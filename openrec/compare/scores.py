"""What a trained system reads: accuracy and 1-NED on held-out words and on real ones."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openrec.checkpoint import read_checkpoint
from openrec.config import resolve_charset
from openrec.data import build_loader
from openrec.engine.distributed import start_world
from openrec.engine.evaluation import fill_model
from openrec.engine.evaluator import RULE, Evaluator
from openrec.engine.logger import start_logging, stop_logging
from openrec.errors import ConfigError
from openrec.modeling import build_model
from openrec.postprocess import build_post_process


def uses_bf16(config: Mapping[str, Any], device: torch.device) -> bool:
    """What ``Global.use_amp`` means on this device."""
    wanted = config["Global"]["use_amp"]
    if wanted == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return bool(wanted)


def build(config: Mapping[str, Any], weights: Path | None = None) -> tuple[nn.Module, Any, Any]:
    """Model, post-processing and dictionary of a config; with the (averaged, where there are any) weights of a file."""
    charset = resolve_charset(config)
    post_process = build_post_process(config["PostProcess"], config["Global"], charset)
    architecture = copy.deepcopy(config["Architecture"])
    architecture["Decoder"]["out_channels"] = post_process.get_character_num()
    model = build_model(architecture)
    if weights is not None:
        fill_model(model, read_checkpoint(weights), weights, charset.characters)
    return model, post_process, charset


def real_dataset(place: str, transforms: Sequence[Any]) -> dict[str, Any]:
    """``Eval.dataset`` for real words: an LMDB, or a directory with ``labels.tsv``.

    Raises:
        ConfigError: neither.
    """
    folder = Path(place).expanduser()
    if not any("Decode" in name for op in transforms for name in op):
        transforms = [{"DecodeImagePIL": {"img_mode": "RGB"}}, *transforms]
    if (folder / "labels.tsv").is_file():
        return {"name": "SimpleDataSet", "data_dir": str(folder), "label_file_list": [str(folder / "labels.tsv")],
                "transforms": list(transforms)}  # fmt: skip
    if any(folder.glob("**/data.mdb")):
        return {"name": "LMDBDataSet", "data_dir": str(folder), "transforms": list(transforms)}
    raise ConfigError(f'--real: "{place}" is neither an LMDB nor a directory with labels.tsv (file<TAB>text).')


def scores(config: Mapping[str, Any], weights: Path, real: Sequence[str]) -> dict[str, Any]:
    """Of the last weights: on ``Eval`` as it stands, on each set of real words, and on all of these together.

    ``real_fit_acc`` is under OpenOCR's rule: words not longer than the system reads, compared without characters that
    are not in its dictionary.
    """
    found: dict[str, Any] = {f"{p}{k}": None for p in ("", "real_") for k in ("acc", "norm_edit_dis")}
    found |= {"real_fit_acc": None, "samples": 0, "real_samples": 0, "real_fit_samples": 0, "real_sets": {}}
    if config.get("Eval"):
        numbers = _score(config, config["Eval"], weights)
        found |= {k: numbers[k] for k in ("acc", "norm_edit_dis", "samples")}
    for place in real:
        found["real_sets"][_name(place, found["real_sets"])] = _real(config, weights, place)
    sets = found["real_sets"].values()
    for to, key, count in (
        ("real_acc", "acc", "samples"), ("real_norm_edit_dis", "norm_edit_dis", "samples"),
        ("real_fit_acc", "fit_acc", "fit_samples"),
    ):  # fmt: skip
        total = sum(s[count] for s in sets)
        found["real_" + count] = total
        found[to] = sum(s[key] * s[count] for s in sets) / total if total else None
    return found


def _name(place: str, taken: Mapping[str, Any]) -> str:
    name = Path(place).name
    return name if name not in taken else place


def _real(config: Mapping[str, Any], weights: Path, place: str) -> dict[str, Any]:
    section = {
        "dataset": real_dataset(place, config["Eval"]["dataset"]["transforms"]),
        "loader": {"batch_size_per_card": 64, "num_workers": 0},
    }
    return _score(config, section, weights)


def _score(config: Mapping[str, Any], section: Any, weights: Path) -> dict[str, Any]:
    start_logging(None)
    try:
        world = start_world(config["Global"]["device"], join=False)
        model, post_process, charset = build(config, weights)
        loader = build_loader({**config, "Eval": section}, "Eval", charset=charset, seed=int(config["Global"]["seed"]))
        evaluator = Evaluator(loader, post_process, config["Metric"], world, amp=uses_bf16(config, world.device))
        numbers = evaluator.evaluate(model.to(world.device))
        loader.close()
    finally:
        stop_logging()
    return {
        "acc": numbers["acc"], "norm_edit_dis": numbers["norm_edit_dis"], "samples": _count(numbers, ""),
        "fit_acc": numbers.get(RULE + "acc", 0.0), "fit_samples": _count(numbers, RULE),
    }  # fmt: skip


def _count(numbers: Mapping[str, Any], prefix: str) -> int:
    return int(numbers.get(prefix + "num_samples", numbers.get(prefix + "all_num", 0)))
