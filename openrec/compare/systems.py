"""One system of a comparison: its config under the common conditions, what is measured of it, and its result file."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from openrec.checkpoint import read_checkpoint
from openrec.compare.budget import Budget, BudgetTrainer, planned_steps
from openrec.compare.measures import build, measure_system
from openrec.config import load_config, resolve_charset
from openrec.data import build_loader
from openrec.engine.distributed import start_world
from openrec.engine.evaluation import fill_model
from openrec.engine.evaluator import Evaluator
from openrec.engine.logger import start_logging, stop_logging
from openrec.errors import ConfigError

logger = logging.getLogger("openrec")


@dataclass(frozen=True)
class Conditions:
    """What is the same for all systems.

    Attributes:
        overrides: ``KEY=VALUE`` as for ``-o``, applied to every config.
        real: an LMDB, or a directory with ``labels.tsv`` (file<TAB>text), scored beside ``Eval``.
    """

    budget: Budget
    seed: int = 48
    overrides: tuple[str, ...] = ()
    real: str | None = None

    def of(self, path: str, folder: Path) -> dict[str, Any]:
        """A system's config: its own, the overrides, the seed, few evaluations, everything done in this process."""
        config = load_config(path, list(self.overrides))
        options = config["Global"]
        options.update(
            seed=self.seed, output_dir=str(folder / "run"), auto_resume=True, save_epoch_step=[10**9, 1],
            save_latest_step=100, pretrained_model=options.get("pretrained_model"), progress_bar=False,
        )  # fmt: skip
        if self.budget.minutes is not None:  # the clock sees this process only
            config["Train"]["loader"]["num_workers"] = 0
        return config


@dataclass
class Result:
    """The numbers of one system. Accuracies are shares, speeds images per second, latency ms, memory MiB."""

    name: str
    config: str
    budget: str
    seed: int
    steps: int
    work_minutes: float
    parameters: int
    flops: int
    acc: float | None
    norm_edit_dis: float | None
    samples: int
    real_acc: float | None
    real_norm_edit_dis: float | None
    real_samples: int
    train_ips: float
    infer_ips: float
    latency_ms: float
    peak_memory_mib: float
    image: list[int]
    batch_size: int
    machine: str
    data: str
    conditions: dict[str, Any] = field(default_factory=dict)


def run_system(path: str, name: str, folder: Path, conditions: Conditions) -> Result:
    """Measure, train (or continue), score; ``folder/result.json`` marks a finished system, which is only read.

    Raises:
        ConfigError: the folder holds a result, or a run, under other conditions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, described = folder / "result.json", {**asdict(conditions), "config": _digest(path, conditions)}
    described = json.loads(json.dumps(described))
    _same_conditions(folder, described)
    if file.exists():
        return Result(**json.loads(file.read_text()))
    config = conditions.of(path, folder)
    measured = measure_system(config, folder)
    steps = planned_steps(config, conditions.budget, folder)
    config["Global"]["max_steps"] = steps
    config["Global"]["eval_epoch_step"] = [0, max(1, _epochs(config, steps) // 10)]
    trainer = BudgetTrainer(config)
    trainer.train()
    scores = _scores(config, folder / "run" / "latest.pth", conditions.real)
    device = trainer.world.device.type
    result = Result(
        name=name, config=path, budget=conditions.budget.text(device), seed=conditions.seed, steps=steps,
        work_minutes=trainer.work.seconds / 60, data=_data_of(config), conditions=described, **measured, **scores,
    )  # fmt: skip
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(result), indent=1))
    temporary.replace(file)
    return result


def _digest(path: str, conditions: Conditions) -> Any:
    """The config without what may differ between two calls."""
    config = load_config(path, list(conditions.overrides))
    return {k: config.get(k) for k in ("Architecture", "Loss", "Optimizer", "LRScheduler", "Train", "Eval")}


def _same_conditions(folder: Path, described: Mapping[str, Any]) -> None:
    file = folder / "conditions.json"
    if not file.exists():
        file.write_text(json.dumps(described))
        return
    before = json.loads(file.read_text())
    changed = [k for k in sorted({*before, *described}) if before.get(k) != described.get(k)]
    if changed:
        raise ConfigError(
            f'"{folder}" holds a system trained under other conditions ({", ".join(changed)} differ). Choose another '
            "--output, or delete that folder."
        )


def _epochs(config: Mapping[str, Any], steps: int) -> int:
    """How many times the run goes through its data."""
    charset = resolve_charset(config)
    loader = build_loader(config, "Train", charset=charset, seed=int(config["Global"]["seed"]))
    batches = max(1, len(loader) // int(config["Global"]["accumulation_steps"]))
    loader.close()
    return -(-steps // batches)


def _data_of(config: Mapping[str, Any]) -> str:
    """The training data without the labels' form: equal texts mean equal data."""
    section = copy.deepcopy(config["Train"])
    section["dataset"].pop("transforms", None)
    section["loader"].pop("num_workers", None)
    return json.dumps(section, sort_keys=True, default=str)


# ---- scoring ---------------------------------------------------------------------------------------


def real_dataset(place: str, transforms: Sequence[Any]) -> dict[str, Any]:
    """``Eval.dataset`` for a directory of real words."""
    folder = Path(place).expanduser()
    if not any("Decode" in name for op in transforms for name in op):
        transforms = [{"DecodeImagePIL": {"img_mode": "RGB"}}, *transforms]
    if (folder / "labels.tsv").is_file():
        return {"name": "SimpleDataSet", "data_dir": str(folder), "label_file_list": [str(folder / "labels.tsv")],
                "transforms": list(transforms)}  # fmt: skip
    if any(folder.glob("**/data.mdb")):
        return {"name": "LMDBDataSet", "data_dir": str(folder), "transforms": list(transforms)}
    raise ConfigError(f'--real: "{place}" is neither an LMDB nor a directory with labels.tsv (file<TAB>text).')


def _scores(config: dict[str, Any], weights: Path, real: str | None) -> dict[str, Any]:
    """Of the last weights (averaged ones where there are any): ``Eval`` as it stands, and the real words."""
    found: dict[str, Any] = {}
    sections = {"": config.get("Eval")}
    if real:
        dataset = real_dataset(real, config["Eval"]["dataset"]["transforms"])
        loader = {"batch_size_per_card": 64, "num_workers": 0}
        sections["real_"] = {"dataset": dataset, "loader": loader}
    for prefix in ("", "real_"):
        section = sections.get(prefix)
        numbers = _score({**config, "Eval": section}, weights) if section else {}
        found[f"{prefix}acc"] = numbers.get("acc")
        found[f"{prefix}norm_edit_dis"] = numbers.get("norm_edit_dis")
        found[f"{prefix}samples"] = int(numbers.get("num_samples", numbers.get("all_num", 0)))
    return found


def _score(config: dict[str, Any], weights: Path) -> dict[str, Any]:
    start_logging(None)
    try:
        world = start_world(config["Global"]["device"], join=False)
        model, post_process, charset = build(config)
        fill_model(model, read_checkpoint(weights), weights, charset.characters)
        loader = build_loader(config, "Eval", charset=charset, seed=int(config["Global"]["seed"]))
        evaluator = Evaluator(loader, post_process, config["Metric"], world, amp=config["Global"]["use_amp"])
        numbers = evaluator.evaluate(model.to(world.device))
        loader.close()
        return numbers
    finally:
        stop_logging()
