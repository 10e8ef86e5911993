#!/usr/bin/env python3
"""Which way of finding the reference point lets True2D's decoder learn: three modes, the tiny config, three seeds.

    python benchmarks/true2d_ref_modes.py --work DIR [--steps 3000] [--seeds 1 2 3] [--layouts padded stretched]

One training after the other on one thread, each through the Trainer: the same rendered words, order and schedule for
all modes of a seed, one OneCycle over ``--steps``, scored on 1000 held-out words ten times on the way. ``padded`` is
the config as it is: a word keeps its shape and stands at the left of a 96-pixel image, so the place of its t-th
character depends on its length; ``stretched`` fills the width. ``dense`` as a mode is the same encoder (with position
code) before ``NRTRDecoder``.

A run that was interrupted continues where it was saved and finished ones are not repeated, so the command may be given
again until the table under ``benchmarks/results/`` is complete.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from openrec import __version__
from openrec.config import load_config
from openrec.engine.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
TRUE2D = ROOT / "configs" / "rec" / "true2d" / "true2d_tiny.yml"
DENSE = ROOT / "configs" / "rec" / "true2d" / "true2d_enc_nrtr_dec_tiny.yml"
MODES = ("soft_argmax", "reading", "learned")
LAYOUTS = {"padded": True, "stretched": False}
EVALUATIONS = 10
LEVEL = 0.1  # accuracy that only a run that has left its plateau reaches


def load(mode: str, seed: int, layout: str, steps: int, batch: int, folder: Path, lr_mult: float) -> dict[str, Any]:
    """The tiny config with one epoch of ``steps`` batches."""
    overrides = [
        f"Global.output_dir={folder}",
        f"Global.seed={seed}",
        "Global.epoch_num=1",
        "Global.print_batch_step=50",
        f"Global.eval_batch_step={max(steps // EVALUATIONS, 1)}",
        "Global.save_latest_step=200",
        "Global.progress_bar=False",
        "LRScheduler.warmup_epoch=0.1",
        f"Train.dataset.size={steps * batch}",
        f"Train.loader.batch_size_per_card={batch}",
        "Train.loader.num_workers=0",
        f"Train.dataset.transforms.0.RecTVResize.padding={LAYOUTS[layout]}",
        f"Eval.dataset.transforms.0.RecTVResize.padding={LAYOUTS[layout]}",
    ]
    if mode != "dense":
        overrides.append(f"Architecture.Decoder.ref_mode={mode}")
        if lr_mult != 1:
            factors = ", ".join(f"{n}: {lr_mult}" for n in ("sampling_offsets", "reference_points", "ref_point"))
            overrides.append(f"Optimizer.lr_mult={{{factors}}}")
    return load_config(DENSE if mode == "dense" else TRUE2D, overrides)


def run_once(mode: str, seed: int, layout: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train one mode with one seed, or read the result of the run that already did."""
    name = f"{layout}_{mode}_{seed}_{options.steps}x{options.batch}_{options.lr_mult}"
    folder = options.work / name
    done = folder / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    ledger = folder / "cpu_seconds.json"  # of interrupted parts of this run
    before = json.loads(ledger.read_text()) if ledger.exists() else 0.0
    start = time.process_time()
    try:
        trainer = Trainer(load(mode, seed, layout, options.steps, options.batch, folder, options.lr_mult))
        parameters = sum(p.numel() for p in trainer.model.parameters())
        trainer.train()
    finally:
        seconds = before + time.process_time() - start
        folder.mkdir(parents=True, exist_ok=True)
        ledger.write_text(json.dumps(seconds))
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    evaluations, losses = ([r for r in rows if r["event"] == event] for event in ("eval", "train"))
    last = evaluations[-1]
    result = {
        "mode": mode, "seed": seed, "layout": layout, "steps": last["step"], "parameters": parameters,
        "acc": last["acc"], "norm_edit_dis": last["norm_edit_dis"], "loss": losses[-1]["loss"],
        "cpu_minutes": round(seconds / 60, 2), "curve": [[r["step"], round(r["acc"], 4)] for r in evaluations],
    }  # fmt: skip
    done.write_text(json.dumps(result))
    return result


def spread(values: list[float], scale: float = 1.0, digits: int = 1) -> str:
    """Mean, and the sample deviation where there is one."""
    text = f"{scale * statistics.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {scale * statistics.stdev(values):.{digits}f}"


def first_step_at(curve: list[list[float]], level: float) -> str:
    return next((str(int(step)) for step, acc in curve if acc >= level), "never")


def table(rows: list[dict[str, Any]]) -> list[str]:
    """One line for each layout and mode."""
    lines = [
        "| words | reference points | parameters | seeds | accuracy, % | each seed, % | 1-NED | loss | "
        f"{100 * LEVEL:.0f} % at step | CPU min a run |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for layout, mode in dict.fromkeys((r["layout"], r["mode"]) for r in rows):
        group = [r for r in rows if (r["layout"], r["mode"]) == (layout, mode)]
        column = {key: [r[key] for r in group] for key in ("acc", "norm_edit_dis", "loss", "cpu_minutes")}
        lines.append(
            f"| {layout} | {mode} | {group[0]['parameters']:,} | {len(group)} | {spread(column['acc'], 100)} | "
            f"{', '.join(f'{100 * acc:.1f}' for acc in column['acc'])} | {spread(column['norm_edit_dis'], digits=3)} | "
            f"{spread(column['loss'], digits=2)} | {', '.join(first_step_at(r['curve'], LEVEL) for r in group)} | "
            f"{statistics.mean(column['cpu_minutes']):.1f} |"
        )
    return lines


def write_results(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """JSON and Markdown, after every run: an interrupted comparison shows what there is."""
    command = (
        f"python benchmarks/true2d_ref_modes.py --work DIR --steps {options.steps} --batch {options.batch} --seeds "
        f"{' '.join(map(str, options.seeds))} --modes {' '.join(options.modes)} --layouts {' '.join(options.layouts)}"
        f" --lr-mult {options.lr_mult}"
    )
    about = {
        "date": time.strftime("%Y-%m-%d"), "openrec": __version__, "torch": str(torch.__version__),
        "python": platform.python_version(), "machine": f"{os.cpu_count()} cores, {platform.machine()}, one thread",
        "command": command, "complete": len(rows) == len(options.modes) * len(options.seeds) * len(options.layouts),
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    lines = [
        f"Measured {about['date']}, torch {about['torch']}, {about['machine']}. Accuracy on 1000 held-out words "
        f"after {options.steps} steps of {options.batch} words; mean ± deviation over seeds.",
        "", f"    {command}", "", *table(rows),
    ]  # fmt: skip
    options.output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--modes", nargs="+", choices=[*MODES, "iterative", "dense"], default=list(MODES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=["padded"])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr-mult", type=float, default=1.0, help="rate of offsets and references, as a factor")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "true2d_ref_modes")
    options = parser.parse_args()
    options.work = options.work.resolve()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    # seed by seed, so that an interrupted comparison holds the same seeds for every mode
    for layout in options.layouts:
        for seed in options.seeds:
            for mode in options.modes:
                rows.append(run_once(mode, seed, layout, options))
                write_results(rows, options)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
