"""One model on many benchmark sets, as ``tools/eval_rec_all_{en,ch,long}.py`` do it.

What the scripts force into the config, the sets and the CSV files are OpenOCR's (https://github.com/Topdu/OpenOCR,
Apache-2.0). A set that is missing is listed, not fatal; every sample is scored, and the numbers under OpenOCR's rule
stand beside that.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from openrec.checkpoint import read_checkpoint
from openrec.config import check_config, resolve_charset
from openrec.data import build_loader
from openrec.engine.benchmark_sets import Place
from openrec.engine.distributed import World, launched_rank, start_world, stop_world
from openrec.engine.evaluation import checkpoint_of, fill_model
from openrec.engine.evaluator import Evaluator, split_rule
from openrec.engine.logger import show_bar, start_logging, stop_logging
from openrec.errors import ConfigError, DataError, OpenRecError
from openrec.modeling import build_model
from openrec.postprocess import build_post_process
from openrec.registry import parameters, resolve

logger = logging.getLogger("openrec")

KINDS = ("en", "ch", "long", "long_simple")
_TESTS = ("RatioDataSetTVResize", "RatioDataSet", "LMDBDataSet")  # those with a ``*Test`` form
_WITH_SIZE = {"max_len": 25, "max_ratio": 12}
LONG_LENGTH = 200


@dataclass(frozen=True)
class SetResult:
    """The numbers of one set: on every sample, and under OpenOCR's rule."""

    place: Place
    every: dict[str, Any]
    rule: dict[str, Any]

    def samples(self, rule: bool = False) -> int:
        numbers = self.rule if rule else self.every
        return int(numbers.get("num_samples", numbers.get("all_num", 0)))

    def correct(self, rule: bool = False) -> int:
        """Samples read rightly; the accuracy's denominator carries 1e-5."""
        return round((self.rule if rule else self.every)["acc"] * (self.samples(rule) + 1e-5))


@dataclass
class Benchmark:
    """What was measured.

    Attributes:
        results: one for each set that was found and could be read.
        missing: sets without data, with what is wrong.
        model: what was evaluated: file and number of parameters.
    """

    results: list[SetResult]
    missing: list[tuple[Place, str]]
    checkpoint: Path
    parameters: int


def prepare_config(given: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The config as the script of this ``kind`` changes it."""
    config: dict[str, Any] = copy.deepcopy(dict(given))
    if not (config.get("Eval") or {}).get("dataset"):
        raise ConfigError("Eval.dataset: missing. The sets are read in the way that Eval describes.")
    options, dataset = config["Global"], config["Eval"]["dataset"]
    options["use_amp"] = False
    options["output_dir"] = str(options["output_dir"]).rstrip("/") or "/"
    if kind.startswith("long"):
        _use_ctc_alone(config)
        options["max_text_length"] = LONG_LENGTH
        config["Metric"] = {
            "name": "RecMetricLong",
            **{k: v for k, v in config["Metric"].items() if k in ("main_indicator", "is_filter", "ignore_space")},
        }
        if config["Metric"].get("main_indicator", "acc").startswith("gtc"):
            config["Metric"]["main_indicator"] = "acc"
        _lengthen(config["Architecture"]["Decoder"])
    else:
        config["Metric"] |= {"with_ratio": True, **_WITH_SIZE}
        if config["PostProcess"]["name"] == "GTCLabelDecode":
            config["PostProcess"]["with_ratio"] = True
        keep = dataset["transforms"][-1]["KeepKeys"]
        keep["keep_keys"] = [*keep["keep_keys"], "real_ratio"]
    _use_test_sets(dataset, kind)
    return config


def _use_test_sets(dataset: dict[str, Any], kind: str) -> None:
    """The data set that reads a benchmark: ``Eval``'s own kind, with its ``*Test`` form for English."""
    before = name = dataset["name"].removesuffix("Test")
    if kind == "long_simple":
        dataset["name"] = "SimpleDataSet" if not name.startswith("MultiScale") else name
        return _keep_known(dataset, before)
    if name not in _TESTS:  # words that are rendered, picture files: their transforms decide the size
        name = "LMDBDataSet"
    steps = [next(iter(op)) if isinstance(op, Mapping) else op for op in dataset["transforms"]]
    if not any(step.startswith("DecodeImage") for step in steps):
        dataset["transforms"].insert(0, {"DecodeImagePIL": {"img_mode": "RGB"}})
    if name == "LMDBDataSet" and not any("Resize" in step for step in steps):
        raise ConfigError(
            "Eval.dataset.transforms: no transform resizes, and the data set does not do it either. Add the resize "
            "that the model was trained with, e.g. RecTVResize."
        )
    dataset["name"] = name + "Test" if kind == "en" else name
    _keep_known(dataset, before)


def _keep_known(dataset: dict[str, Any], before: str) -> None:
    """Drop what only the data set of the config knows, such as the number of words to render."""
    if before == dataset["name"].removesuffix("Test"):
        return
    known = parameters(resolve("dataset", dataset["name"]))
    for key in [key for key in dataset if key not in known and key != "name"]:
        del dataset[key]


def _use_ctc_alone(config: dict[str, Any]) -> None:
    """The CTC branch of a GTC model: long lines are scored on one text."""
    decoder = config["Architecture"]["Decoder"]
    if decoder.get("name") != "GTCDecoder":
        return
    decoder["infer_gtc"] = False
    config["PostProcess"] = {"name": "CTCLabelDecode"}
    transforms = config["Eval"]["dataset"]["transforms"]
    for number, op in enumerate(transforms):
        if "GTCLabelEncode" in op:
            transforms[number] = {"CTCLabelEncode": None}
    transforms[-1] = {"KeepKeys": {"keep_keys": ["image", "label", "length"]}}


def _lengthen(decoder: dict[str, Any]) -> None:
    """Let a decoder that reads step by step go on for long lines."""
    if "max_len" in parameters(resolve("decoder", decoder["name"])):
        decoder["max_len"] = LONG_LENGTH


def _at(given: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The config with one set as its ``Eval`` data."""
    config: dict[str, Any] = copy.deepcopy(dict(given))
    dataset, path = config["Eval"]["dataset"], str(place.path)
    for key in ("data_dir", "data_dir_list", "label_file_list", "ratio_list"):
        dataset.pop(key, None)
    if dataset["name"] in ("SimpleDataSet", "MultiScaleDataSet"):
        dataset |= {"data_dir": str(Path(path).parent), "label_file_list": [path]}
    elif dataset["name"].startswith("Ratio"):
        dataset["data_dir_list"] = [path]
    else:
        dataset["data_dir"] = path
    return config


def run_benchmark(config: Mapping[str, Any], places: Sequence[Place], kind: str = "en") -> Benchmark:
    """Evaluate ``Global.pretrained_model`` (or ``best.pth`` in the output directory) on every set that is there.

    Raises:
        OpenRecError: config or checkpoint that cannot be used; not one set found.
    """
    start_logging(None, launched_rank() == 0)
    config = prepare_config(config, kind)
    if not any(p.path for p in places):
        tried = ", ".join(str(p.tried[0]) for p in places[:3])
        raise DataError(
            f"none of the {len(places)} sets is there (looked for {tried}, ...; working directory: {Path.cwd()}). Give "
            "the directory that holds test/, u14m/ ... with --root, or single sets with --sets NAME=PATH."
        )
    check_config(_at(config, next(p for p in places if p.path)), "eval")
    world = start_world(config["Global"]["device"], join=True)
    try:
        model, post_process, charset, file = _model(config)
        results, missing = [], []
        for place in places:
            if place.path is None:
                missing.append((place, "not found in " + ", ".join(str(p) for p in place.tried)))
                continue
            try:
                results.append(
                    _evaluate(_at(config, place), place, model.to(world.device), post_process, charset, world)
                )
            except (DataError, OSError) as error:
                missing.append((place, str(error).splitlines()[0]))
        if not results:
            raise DataError("not one set could be read:\n" + "\n".join(f"  {p.name}: {why}" for p, why in missing))
        return Benchmark(results, missing, file, sum(p.numel() for p in model.parameters()))
    finally:
        stop_world()
        stop_logging()


def _model(config: dict[str, Any]) -> tuple[nn.Module, Any, Any, Path]:
    options = config["Global"]
    file = checkpoint_of(options)
    state = read_checkpoint(file)
    charset = resolve_charset(config)
    post_process = build_post_process(config["PostProcess"], options, charset)
    config["Architecture"]["Decoder"]["out_channels"] = post_process.get_character_num()
    model = build_model(config["Architecture"])
    fill_model(model, state, file, charset.characters)
    return model, post_process, charset, file


def _evaluate(
    config: Mapping[str, Any], place: Place, model: nn.Module, post_process: Any, charset: Any, world: World
) -> SetResult:
    loader = build_loader(
        config, "Eval", charset=charset, seed=int(config["Global"]["seed"]), rank=world.rank, world_size=world.size
    )
    bar = show_bar(config["Global"]["progress_bar"], world.is_main)
    try:
        evaluator = Evaluator(loader, post_process, config["Metric"], world, bar=bar, lists=True)
        every, rule = split_rule(evaluator.evaluate(model))
    finally:
        loader.close()
    result = SetResult(place, every, rule)
    logger.info("%s: %.2f %% of %d samples", place.name, 100 * every["acc"], result.samples())
    return result


def config_of_checkpoint(path: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The config that a checkpoint holds, to be evaluated as it is.

    Raises:
        OpenRecError: no such file, or one without its config.
    """
    stored = read_checkpoint(path).get("config")
    if not stored:
        raise OpenRecError(f'"{path}" holds no config; give the YAML it was trained with: -c config.yml.')
    from openrec.config_schema import GLOBAL, REQUIRED

    config = copy.deepcopy(stored)
    defaults = {name: key.default for name, key in GLOBAL.items() if key.default is not REQUIRED and not key.ignored}
    config["Global"] = {**defaults, **config["Global"], "pretrained_model": str(path), **(overrides or {})}
    return config
