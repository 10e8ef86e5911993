"""Does DINO read, and does it find the characters where they are? Words that training never draws, with known boxes.

    python benchmarks/dino_boxes.py --work DIR --minutes 60
    python benchmarks/dino_boxes.py --weights compared/dino_tiny/run/latest.pth     measures what is trained already

Trains a DINO config (``dino_tiny.yml``) through ``openrec.engine.trainer.Trainer`` on rendered words; the same command
continues after a stop, and stops by itself when this start has used ``--minutes`` or the run its ``--steps``. Then
word accuracy, and the mean intersection over union of true character boxes with those found, are measured on held-out
words: over all words, each true character against the best box of the same character (0 where there is none), and over
correctly read words in reading order. Numbers, command and machine go to JSON and Markdown (``benchmarks/results/``).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openrec import __version__
from openrec.checkpoint import read_checkpoint
from openrec.config import load_config, resolve_charset
from openrec.data import build_loader
from openrec.engine.evaluation import fill_model
from openrec.engine.trainer import Trainer
from openrec.modeling import build_model
from openrec.postprocess import build_post_process

ROOT = Path(__file__).resolve().parents[1]


def config_of(options: argparse.Namespace) -> dict[str, Any]:
    """The YAML with the length of the run."""
    config = load_config(options.config)
    batch = config["Train"]["loader"]["batch_size_per_card"]
    config["Train"]["dataset"]["size"] = batch * options.epoch_steps
    config["Train"]["loader"]["num_workers"] = options.workers
    config["Eval"]["dataset"]["size"] = options.words
    config["Eval"]["loader"]["num_workers"] = 0
    config["Optimizer"]["lr"] = options.lr or config["Optimizer"]["lr"]
    config["Global"].update(
        output_dir=str(options.work), epoch_num=math.ceil(options.steps / options.epoch_steps), max_steps=options.steps,
        max_minutes=options.minutes, seed=options.seed, device=options.device, auto_resume=True, save_latest_step=50,
        eval_epoch_step=[0, 10**6],
    )  # fmt: skip
    return config


def train(options: argparse.Namespace) -> Path:
    """Start or go on, until the run or this start's time is over; its checkpoint."""
    Trainer(config_of(options)).train()
    return options.work / "latest.pth"


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of every box of ``a [n, 4]`` with every box of ``b [m, 4]``, (cx, cy, w, h)."""
    low = np.maximum(a[:, None, :2] - a[:, None, 2:] / 2, b[None, :, :2] - b[None, :, 2:] / 2)
    high = np.minimum(a[:, None, :2] + a[:, None, 2:] / 2, b[None, :, :2] + b[None, :, 2:] / 2)
    inter = np.clip(high - low, 0, None).prod(-1)
    return inter / np.maximum(a[:, None, 2:].prod(-1) + b[None, :, 2:].prod(-1) - inter, 1e-9)


@torch.no_grad()
def measure(options: argparse.Namespace, file: Path) -> dict[str, Any]:
    """Accuracy and boxes of a checkpoint on held-out words."""
    config = config_of(options)
    charset = resolve_charset(config)
    post = build_post_process(config["PostProcess"], config["Global"], charset)
    config["Architecture"]["Decoder"]["out_channels"] = post.get_character_num()
    model = build_model(config["Architecture"]).to(options.device).eval()
    fill_model(model, read_checkpoint(file), file, charset.characters)
    loader = build_loader(config, "Eval", charset=charset, seed=options.seed)
    words = correct = 0
    every: list[float] = []
    in_order: list[float] = []
    for batch in loader.epoch(1):
        image, label, length, boxes, has_box = (t.to(options.device) for t in batch.tensors[:5])
        found = post.with_boxes(model(image))
        for row, (item, own) in enumerate(found):
            n = int(length[row])
            words, truth = words + 1, "".join(post.tokens[label[row, :n].cpu().numpy()])
            correct += item.text == charset.normalize(batch.texts[row])
            if not has_box[row]:
                continue
            pairs = iou(boxes[row, :n].cpu().numpy(), own) if len(own) else np.zeros((n, 1))
            same = np.array([[a == b for b in item.text] or [False] for a in truth])
            every += (pairs * same).max(1).tolist()
            in_order += np.diag(pairs).tolist() if item.text == truth else []
    loader.close()
    mean = {"all_characters": np.mean(every), "of_correct_words": np.mean(in_order) if in_order else 0.0}
    return {
        "words": words, "accuracy": round(correct / words, 4), "characters": len(every),
        "mean_iou": {k: round(float(v), 4) for k, v in mean.items()},
    }  # fmt: skip


def page(result: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """The numbers in Markdown."""
    boxes = result["mean_iou"]
    return [
        f"Measured {result['date']}, torch {result['torch']}, {result['machine']}, {options.device}.", "",
        f"    {result['command']}", "",
        f"`{options.config.stem}` after {result['steps']} optimizer steps on rendered words, on "
        f"{result['words']} rendered words that training never draws.", "",
        "| words read correctly | mean IoU, every true character | mean IoU, characters of correctly read words |",
        "|---|---|---|",
        f"| {100 * result['accuracy']:.1f} % | {boxes['all_characters']:.3f} | {boxes['of_correct_words']:.3f} |", "",
        "Every true character counts with its overlap with the best box of the same character that was read, 0 where "
        "there is none.",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--work", type=Path, help="train; checkpoints and logs")
    where.add_argument("--weights", type=Path, help="measure this checkpoint of the config, train nothing")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "rec" / "dino" / "dino_tiny.yml")
    parser.add_argument("--steps", type=int, default=6000, help="optimizer steps of the whole run")
    parser.add_argument("--minutes", type=float, default=None, help="of this start")
    parser.add_argument("--words", type=int, default=1000, help="held-out words")
    parser.add_argument("--epoch-steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "dino_boxes.json")
    options = parser.parse_args()
    command = "python benchmarks/dino_boxes.py"
    if options.weights:
        options.work = file = options.weights.resolve()
        command += f" --weights {file.name} --words {options.words} --seed {options.seed} --device {options.device}"
    else:
        options.work = options.work.resolve()
        file = train(options)
        command += f" --work DIR --steps {options.steps} --words {options.words} --epoch-steps {options.epoch_steps}"
        command += f" --seed {options.seed} --device {options.device}" + (f" --lr {options.lr}" if options.lr else "")
    result = {
        "date": time.strftime("%Y-%m-%d"), "openrec": __version__, "torch": torch.__version__, "command": command,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads",
        "steps": int(read_checkpoint(file)["global_step"]), **measure(options, file),
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    options.output.with_suffix(".md").write_text("\n".join(page(result, options)) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
