"""One system of a comparison: its config under the common conditions, what is measured of it, and its result file."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from openrec.compare.budget import Budget, BudgetTrainer, planned_steps
from openrec.compare.lock import locked
from openrec.compare.measures import MEASURED, measure_reading, measure_training
from openrec.compare.scores import real_dataset, scores
from openrec.config import check_config, load_config, resolve_charset
from openrec.data import build_loader
from openrec.errors import ConfigError, OpenRecError

logger = logging.getLogger("openrec")


@dataclass(frozen=True)
class Conditions:
    """What is the same for all systems.

    Attributes:
        overrides: ``KEY=VALUE`` as for ``-o``, applied to every config.
        real: LMDBs, or directories with ``labels.tsv`` (file<TAB>text), scored beside ``Eval``.
        threads: of PyTorch in each system's process; None leaves them as they are.
    """

    budget: Budget
    seed: int = 48
    overrides: tuple[str, ...] = ()
    real: tuple[str, ...] = ()
    threads: int | None = None

    def __post_init__(self) -> None:
        own = [
            o for o in self.overrides if o.partition("=")[0] in ("Global.max_steps", "Global.seed", "Global.output_dir")
        ]
        if own:
            raise ConfigError(
                f"-o {own[0]}: the comparison sets it. Give --steps or --minutes, --seed, --output instead."
            )
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"--threads: expected a number of at least 1, got {self.threads}.")

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Conditions:
        """Those that a result file holds."""
        return cls(
            Budget(**kept["budget"]), kept["seed"], tuple(kept["overrides"]), tuple(kept["real"]), kept["threads"]
        )

    def check(self, path: str) -> None:
        """Before anything is trained: the config builds, and real words can be scored with it.

        Raises:
            ConfigError: they do not.
        """
        config = self.of(path, Path("unused"))
        check_config(config)
        for place in self.real:
            if not config.get("Eval"):
                raise ConfigError(f"--real: {path} has no Eval section, whose transforms real words would need.")
            real_dataset(place, config["Eval"]["dataset"]["transforms"])

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
    flops: float
    acc: float | None
    norm_edit_dis: float | None
    samples: int
    real_acc: float | None
    real_norm_edit_dis: float | None
    real_samples: int
    real_fit_acc: float | None
    real_fit_samples: int
    real_sets: dict[str, dict[str, Any]]
    train_ips: float
    infer_ips: float
    infer_batch: int
    latency_ms: float
    peak_memory_mib: float
    image: list[int]
    batch_size: int
    machine: str
    data: str
    conditions: dict[str, Any] = field(default_factory=dict)


def run_system(path: str, name: str, folder: Path, conditions: Conditions) -> Result:
    """Measure, train (or continue), score; ``folder/result.json`` marks a finished system, which is only read, or
    scored where ``conditions`` name other real words.

    Raises:
        ConfigError: the folder holds a result, or a run, under other conditions.
        Busy: another process works on it.
    """
    with locked(folder):
        return _run(path, name, folder, conditions)


def _run(path: str, name: str, folder: Path, conditions: Conditions) -> Result:
    file, described = folder / "result.json", _described(path, conditions)
    _same_conditions(folder, described)
    config, weights = conditions.of(path, folder), folder / "run" / "latest.pth"
    if file.exists():
        result = read_result(file)
        if result.conditions.get("real") != described["real"]:  # other real words need no other training
            result = replace(result, conditions=described, **scores(config, weights, conditions.real))
            write_result(result, file)
        return result
    measured = measure_training(config, folder)
    steps = planned_steps(config, conditions.budget, folder)
    config["Global"]["max_steps"] = steps
    config["Global"]["eval_epoch_step"] = [0, max(1, _epochs(config, steps) // 10)]
    trainer = BudgetTrainer(config, conditions.budget.minutes)
    trainer.train()
    if trainer.paused:  # by Global.max_minutes
        raise OpenRecError(f"stopped at step {trainer.parts.progress.step}; the same command goes on there.")
    found = {**scores(config, weights, conditions.real), **measure_reading(config, weights)}
    device = trainer.world.device.type
    result = Result(
        name=name, config=path, budget=conditions.budget.text(device), seed=conditions.seed,
        steps=trainer.parts.progress.step, work_minutes=trainer.work.seconds / 60, data=_data_of(config),
        conditions=described, **measured, **found,
    )  # fmt: skip
    write_result(result, file)
    return result


def measure_again(folder: Path) -> Result:
    """Operations, speeds and memory of a finished system once more; its training and its scores stay.

    Raises:
        ConfigError: its config is another one now.
        Busy: another process works on it.
    """
    with locked(folder):
        file = folder / "result.json"
        result = read_result(file)
        conditions = Conditions.read(result.conditions)
        _same_conditions(folder, _described(result.config, conditions))
        config = conditions.of(result.config, folder)
        (folder / MEASURED).unlink(missing_ok=True)
        measured = measure_training(config, folder) | measure_reading(config, folder / "run" / "latest.pth")
        result = replace(result, **measured)
        write_result(result, file)
        return result


def read_result(file: Path) -> Result:
    """``result.json`` of a finished system."""
    return Result(**json.loads(file.read_text()))


def write_result(result: Result, file: Path) -> None:
    """``result.json``, which marks a system as finished."""
    _write(asdict(result), file, indent=1)


def _write(found: Any, file: Path, indent: int | None = None) -> None:
    """Whole or not at all: another process may read it at any time."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=indent))
    temporary.replace(file)


def _described(path: str, conditions: Conditions) -> dict[str, Any]:
    """The conditions, and the config without what may differ between two calls, as JSON gives them back."""
    config = load_config(path, list(conditions.overrides))
    kept = {k: config.get(k) for k in ("Architecture", "Loss", "Optimizer", "LRScheduler", "Train", "Eval")}
    return json.loads(json.dumps({**asdict(conditions), "config": kept}))


def _same_conditions(folder: Path, described: Mapping[str, Any]) -> None:
    file = folder / "conditions.json"
    before = json.loads(file.read_text()) if file.exists() else described
    changed = differing(before, described)
    if changed:
        raise ConfigError(
            f'"{folder}" holds a system trained under other conditions ({", ".join(changed)} differ). Choose another '
            "--output, or delete that folder."
        )
    if not file.exists() or before != described:
        _write(described, file)


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the conditions under which two trainings differ; which real words are scored is none of them."""
    return [k for k in sorted({*before, *now} - {"real"}) if before.get(k) != now.get(k)]


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
