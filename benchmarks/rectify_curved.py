"""Does straightening help? The same small recogniser without a transform, with STN and with TPS, on curved words.

    python benchmarks/rectify_curved.py --work DIR [--steps 2000] [--seeds 1 2]

The recogniser is ``svtrv2_mamba_tiny.yml`` (CTC reads columns, so it needs lines more than attention does); its image
is 32x96 either way, but a transform takes it out of a 64x192 one. It learns straight words first (``--base-steps``,
once for a seed; from scratch CTC does not begin to read words that lie across its columns in so few steps). All
variants go on from there, with the same rendered words, turned and bent on purpose, the same seed and number of steps;
a transform starts as the identity. One run after the other through ``openrec.engine.trainer.Trainer``; the same command
continues after a stop. Each is scored on three sets of words that training never draws: straight ones, curved ones,
curved and rotated ones. The table and JSON under ``benchmarks/results/`` hold accuracy with counts, command, versions
and machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from openrec import __version__
from openrec.checkpoint import read_checkpoint
from openrec.config import load_config
from openrec.engine.evaluation import evaluate_config
from openrec.engine.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
REC = ROOT / "configs" / "rec"
RECOGNISER = REC / "svtrv2" / "svtrv2_mamba_tiny.yml"
ATTN = REC / "attn"
VARIANTS: dict[str, Path | None] = {
    "none": None,
    "STN": ATTN / "stn_soft_attn_tiny.yml",
    "TPS": ATTN / "tps_soft_attn_tiny.yml",
}
LARGE = [64, 192]  # what a transform cuts its image out of
MILD = {"strength": 0.5, "random_share": 0.2}  # the shape is what is measured, so the rest is easy
LONG = {"min_length": 3}  # two letters do not bend
TRAINING = {"rotation": [0, 35], "curvature": [0, 110]}  # degrees, either way
SETS: dict[str, dict[str, Any]] = {
    "straight": {"rotation": [0, 0], "curvature": [0, 0]},
    "curved": {"rotation": [0, 0], "curvature": [50, 110]},
    "curved and rotated": {"rotation": [10, 35], "curvature": [50, 110]},
}


def resize(config: dict[str, Any], **options: Any) -> None:
    for part in ("Train", "Eval"):
        next(t for t in config[part]["dataset"]["transforms"] if "RecTVResize" in t)["RecTVResize"].update(options)


def run_of(name: str, seed: int, steps: int, options: argparse.Namespace) -> dict[str, Any]:
    """The recogniser on mildly distorted words, for so many steps."""
    config = load_config(RECOGNISER)
    resize(config, padding=False)  # words that fill the columns are read much sooner
    config["Train"]["dataset"].update(
        size=config["Train"]["loader"]["batch_size_per_card"] * options.epoch_steps, **MILD
    )
    config["Train"]["loader"]["num_workers"] = options.workers
    config["Eval"]["dataset"].update(size=options.words, **MILD, **LONG, **SETS["straight"])
    config["Global"].update(
        output_dir=str(options.work / f"{name.lower()}_seed{seed}_{steps}"),
        epoch_num=math.ceil(steps / options.epoch_steps), max_steps=steps, seed=seed, progress_bar=False,
        device=options.device, auto_resume=True, save_latest_step=200, eval_epoch_step=[0, options.eval_every],
    )  # fmt: skip
    return config


def config_of(variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The recogniser on curved words, behind the transform, and at the transform's rate, of the variant's YAML."""
    config = run_of(variant, seed, options.steps, options)
    if path := VARIANTS[variant]:
        other = load_config(path)
        config["Architecture"]["Transform"] = other["Architecture"]["Transform"]
        config["Optimizer"]["lr_mult"] = other["Optimizer"]["lr_mult"]
        resize(config, image_shape=LARGE)
    config["Train"]["dataset"].update(LONG, **TRAINING)
    config["Eval"]["dataset"].update(SETS["curved and rotated"])
    config["Optimizer"]["lr"] /= 2  # it reads already
    return config


def base(seed: int, options: argparse.Namespace) -> Path:
    """Weights of the recogniser that has learnt straight words only."""
    config = run_of("straight", seed, options.base_steps, options)
    weights = Path(config["Global"]["output_dir"]) / "latest.pth"
    if not weights.exists() or int(read_checkpoint(weights)["global_step"]) < options.base_steps:
        Trainer(config).train()
    return weights


def scores(config: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Numbers of a finished run's last weights on every set."""
    found = {}
    for name, pose in SETS.items():
        one = copy.deepcopy(config)
        one["Eval"]["dataset"].update(pose)
        one["Global"]["pretrained_model"] = str(Path(config["Global"]["output_dir"]) / "latest.pth")
        numbers = evaluate_config(one)
        found[name] = {
            "acc": round(float(numbers["acc"]), 4), "norm_edit_dis": round(float(numbers["norm_edit_dis"]), 4),
            "words": int(numbers["num_samples"]),
        }  # fmt: skip
    return found


def run(variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train (or continue, or find finished) one variant and score it."""
    config = config_of(variant, seed, options)
    result = Path(config["Global"]["output_dir"]) / "scores.json"
    if result.exists():
        return json.loads(result.read_text())
    config["Global"]["pretrained_model"] = str(base(seed, options))
    start = time.process_time()
    trainer = Trainer(config)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    trainer.train()
    row = {
        "variant": variant, "seed": seed, "steps": options.steps, "parameters": parameters,
        "cpu_minutes_of_last_start": round((time.process_time() - start) / 60, 1), "sets": scores(config),
    }  # fmt: skip
    result.write_text(json.dumps(row, indent=1) + "\n")
    return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: accuracy of every variant on every set, mean over seeds and the single values."""
    lines = ["| transform | parameters | " + " | ".join(SETS) + " |", "|---" * (2 + len(SETS)) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == variant]
        cells = []
        for name in SETS:
            values = [100 * row["sets"][name]["acc"] for row in own]
            single = f" ({', '.join(f'{v:.1f}' for v in values)})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f} %{single}")
        lines.append(f"| {variant} | {own[0]['parameters']:,} | " + " | ".join(cells) + " |")
    return lines


def write_results(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """JSON and a Markdown table; paths of this machine stay out of both."""
    seeds = " ".join(map(str, options.seeds))
    command = f"python benchmarks/rectify_curved.py --work DIR --base-steps {options.base_steps}"
    command += f" --steps {options.steps} --seeds {seeds}"
    command += f" --variants {' '.join(options.variants)} --words {options.words} --device {options.device}"
    about = {
        "date": time.strftime("%Y-%m-%d"), "openrec": __version__, "torch": torch.__version__,
        "python": platform.python_version(), "threads": torch.get_num_threads(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}", "command": command,
        "words": {**MILD, **LONG}, "training": TRAINING, "sets": SETS,
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    words = rows[0]["sets"]["straight"]["words"]
    lines = [
        f"Measured {about['date']}, torch {about['torch']}, {about['machine']}, {options.device}.", "",
        f"    {command}", "",
        f"Word accuracy on {words} rendered words per set, none of them drawn in training; {options.base_steps} "
        f"steps on straight words for all, then {options.steps} of the same curved ones; in parentheses single seeds, "
        "where there are several.", "", *table(rows),
    ]  # fmt: skip
    options.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and logs")
    parser.add_argument("--steps", type=int, default=2000, help="optimizer steps of every variant")
    parser.add_argument("--base-steps", type=int, default=1500, help="optimizer steps on straight words before")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--words", type=int, default=2000, help="words per test set")
    parser.add_argument("--epoch-steps", type=int, default=200)
    parser.add_argument("--eval-every", type=int, default=5, help="epochs between evaluations")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "rectify_curved")
    options = parser.parse_args()
    options.work = options.work.resolve()
    rows = [run(variant, seed, options) for seed in options.seeds for variant in options.variants]
    write_results(rows, options)


if __name__ == "__main__":
    main()
