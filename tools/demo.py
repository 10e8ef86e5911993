#!/usr/bin/env python3
"""From nothing to a model that reads, in minutes on two cores: what ``make demo`` runs.

Renders words into two LMDBs (the test words occur in no training image), trains a small SVTRv2Mamba, evaluates its
checkpoint and draws what it looked at. A second call continues or repeats only what is missing.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from openrec.charset import Charset
from openrec.cli import run_tool
from openrec.config import load_config
from openrec.data.render.bulk import write_lmdb
from openrec.data.render.renderer import WordRenderer
from openrec.engine.evaluation import evaluate_config
from openrec.engine.trainer import Trainer
from openrec.explain import page_of_checkpoint

CONFIG = "configs/rec/svtrv2/svtrv2_mamba_demo.yml"


def make_words(folder: Path, split: str, count: int, seed: int) -> None:
    """``count`` words of 1-8 letters and digits in the system's fonts, mildly distorted."""
    if not (folder / "data.mdb").exists():
        renderer = WordRenderer(
            Charset.load(), min_length=1, max_length=8, word_split=split, strength=0.5, random_share=0.2
        )
        print(*renderer.summary(), sep="\n")
        print(write_lmdb(renderer, folder, count, seed, workers=os.cpu_count() or 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/demo"))
    parser.add_argument("--words", type=int, default=30000, help="training words to render")
    parser.add_argument("--opt", nargs="*", default=[], metavar="KEY=VALUE", help="changes to the config")
    a = parser.parse_args()
    make_words(a.output / "train", "train", a.words, seed=1)
    make_words(a.output / "test", "test", 1000, seed=2)
    places = [f"Global.output_dir={a.output}/model", f"Train.dataset.data_dir={a.output}/train"]
    overrides = [*places, f"Eval.dataset.data_dir={a.output}/test", *a.opt]
    Trainer(load_config(CONFIG, overrides)).train()
    best = a.output / "model" / "best.pth"
    config = load_config(CONFIG, [*overrides, f"Global.pretrained_model={best}"])
    numbers = evaluate_config(config)
    page = page_of_checkpoint(config, best, a.output / "what_it_looked_at.png")
    print(f"\npicture of what the model looked at: {page}\ncheckpoint: {best}")
    print("next: README.md, 'Train on your own words'; or another encoder on words rendered on the fly:")
    print(f"      {sys.executable} tools/train_rec.py -c configs/rec/svtrv2/svtrv2_attn_tiny.yml")
    print(f"word accuracy on {numbers['num_samples']:.0f} held-out words: {100 * numbers['acc']:.1f} %")


if __name__ == "__main__":
    run_tool(main)
