#!/usr/bin/env python3
"""Does hard attention learn where to look? Words read with a policy that rewards taught, and with one never taught.

    python benchmarks/hard_attention.py --work DIR [--steps 5000] [--seeds 1]

The same tiny recogniser three times, with the same words, seed and number of steps: ``hard_attn_tiny.yml`` as it is
(softly at first, later half of the batches by draws), taught by REINFORCE's rewards alone (every look is a draw, from
the first step on), and never taught (the same draws, but no gradient reaches the policy, so the reader has to live
with looks at random). Scored on held-out words, where the likeliest place is looked at. The same command continues
after a stop; table and JSON go to ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from openrec import __version__
from openrec.config import load_config
from openrec.engine.evaluation import evaluate_config
from openrec.engine.trainer import Trainer
from openrec.shipping.score import cpu_name

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "rec" / "attn" / "hard_attn_tiny.yml"
DRAWS = {"semi_sampling_p": 0.0, "warm_start_epochs": 0}
VARIANTS: dict[str, dict[str, float]] = {
    "as in the config": {},
    "never taught": {**DRAWS, "lambda_r": 0.0, "lambda_e": 0.0},
    "rewards alone": DRAWS,
}
EPOCH_STEPS = 200


def config_of(variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The YAML with the variant's decoder and the length of the run."""
    config = load_config(CONFIG)
    config["Architecture"]["Decoder"].update(VARIANTS[variant])
    config["Train"]["dataset"]["size"] = config["Train"]["loader"]["batch_size_per_card"] * EPOCH_STEPS
    config["Train"]["loader"]["num_workers"] = 0
    config["Eval"]["dataset"]["size"] = options.words
    config["Global"].update(
        output_dir=str(options.work / f"{variant.replace(' ', '_')}-{seed}-{options.steps}"), seed=seed,
        epoch_num=math.ceil(options.steps / EPOCH_STEPS), max_steps=options.steps, auto_resume=True,
        save_latest_step=200, eval_epoch_step=[0, 5], progress_bar=False,
    )  # fmt: skip
    return config


def run(variant: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train (or continue, or find finished) one variant and score its last weights."""
    config = config_of(variant, seed, options)
    folder = Path(config["Global"]["output_dir"])
    result = folder / f"scores-{options.words}.json"
    if result.exists():
        return json.loads(result.read_text())
    Trainer(config).train()
    config["Global"]["pretrained_model"] = str(folder / "latest.pth")
    numbers = evaluate_config(config)
    row = {
        "variant": variant, "seed": seed, "steps": options.steps, "words": int(numbers["num_samples"]),
        "correct": int(numbers["correct"]), "norm_edit_dis": round(float(numbers["norm_edit_dis"]), 4),
    }  # fmt: skip
    result.write_text(json.dumps(row) + "\n")
    return row


def write_results(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    command = f"python benchmarks/hard_attention.py --work DIR --steps {options.steps} --words {options.words}"
    command += f" --seeds {' '.join(map(str, options.seeds))} --variants {shlex.join(options.variants)}"
    about = {
        "date": time.strftime("%Y-%m-%d"), "openrec": __version__, "torch": torch.__version__,
        "python": platform.python_version(), "machine": f"{os.cpu_count()} cores, {cpu_name()}", "command": command,
    }  # fmt: skip
    lines = [
        f"Measured {about['date']}, torch {about['torch']}, {about['machine']}, "
        f"{torch.get_num_threads()} threads; {CONFIG.relative_to(ROOT)}.", "",
        f"    {command}", "",
        f"{options.steps} steps of the same words each; held-out rendered words, every one scored.", "",
        "| policy | seed | read | accuracy | 1-NED |", "|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    lines += [
        f"| {r['variant']} | {r['seed']} | {r['correct']} of {r['words']} | {100 * r['correct'] / r['words']:.1f} % | "
        f"{r['norm_edit_dis']:.3f} |"
        for r in rows
    ]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    options.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and logs")
    parser.add_argument("--steps", type=int, default=5000, help="optimizer steps of every run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--words", type=int, default=1000, help="held-out words (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "hard_attention")
    options = parser.parse_args()
    options.work = options.work.resolve()
    write_results([run(variant, seed, options) for seed in options.seeds for variant in options.variants], options)


if __name__ == "__main__":
    main()
