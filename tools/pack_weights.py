#!/usr/bin/env python3
"""Pack a trained model as weights/NAME.safetensors (float16, complete in itself) and write its card.

1. python tools/pack_weights.py --model output/run/latest.pth --name tiny-en --stages output/run1 output/run2
2. python tools/eval_weights.py --model weights/tiny-en.safetensors ...     measures; adds to weights/tiny-en.json
3. python tools/pack_weights.py --name tiny-en --card                       writes weights/tiny-en.md from that JSON,
                                                                            and the overview weights/README.md

Averaged weights (EMA) are taken where the checkpoint holds them. Ten words for the test go to tests/data/shipped/NAME.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openrec.cli import run_tool

ROOT = Path(__file__).resolve().parents[1]
FONTS = ("DejaVu Sans", "DejaVu Serif", "NanumGothic", "NanumMyeongjo", "NanumSquare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint; its characters, config and preprocessing go into the file")
    parser.add_argument("--name", required=True, help="tiny-en, tiny-ko, small-en, ...")
    parser.add_argument("--folder", type=Path, default=ROOT / "weights")
    parser.add_argument("--stages", nargs="*", default=[], metavar="DIR", help="output_dir of each stage, in order")
    parser.add_argument("--commands", nargs="*", default=[], help="the command of each stage")
    parser.add_argument("--commits", nargs="*", default=[], help="of this repository, for each stage")
    parser.add_argument("--state", help="checkpoint to keep as training/NAME.pth, so that a later run goes on")
    parser.add_argument("--state-of", type=int, default=1, metavar="N", help="the stage that it ends (default: 1)")
    parser.add_argument("--resume", default="", help="the command that goes on from it")
    parser.add_argument("--machine", default="", help="one line on what trained it")
    parser.add_argument("--outlook", default="", help="what more training is expected to give, and from which numbers")
    parser.add_argument("--samples", type=Path, help="default: tests/data/shipped/NAME")
    parser.add_argument("--fonts", nargs="+", default=[], help="families for the ten words, openly licensed ones")
    parser.add_argument("--card", action="store_true", help="write NAME.md from NAME.json")
    a = parser.parse_args()
    if not a.model and not a.card:
        parser.error("--model or --card is needed")

    from openrec.recognizer import load
    from openrec.shipping import facts, pack
    from openrec.shipping.card import card, overview

    known = a.folder / f"{a.name}.json"
    if a.model:
        file = pack.pack(a.model, a.name, a.folder)
        texts = zip(a.stages, [*a.commands, *[""] * len(a.stages)], [*a.commits, *[""] * len(a.stages)])
        training = {"stages": [facts.stage(*each) for each in texts], "machine": a.machine, "outlook": a.outlook}
        if a.state:
            kept = a.folder / "training" / f"{a.name}.pth"
            kept.parent.mkdir(parents=True, exist_ok=True)
            pack.keep_state(a.state, kept)
            training |= {"state": f"weights/training/{kept.name}", "state_of": a.state_of, "resume": a.resume}
        found = {"name": a.name, "model": pack.facts_of(file), "training": training}  # old measurements are void
        fonts = a.fonts or [f for f in FONTS if a.name.endswith("ko") == f.startswith("Nanum")]
        looked = pack.write_samples(load(file, device="cpu"), a.samples or ROOT / "tests/data/shipped" / a.name, fonts)
        pack.write_facts(known, found)
        print(f"{file}: {file.stat().st_size / 1e6:.2f} MB; ten of {looked} words for the test")
    if a.card:
        target = a.folder / f"{a.name}.md"
        target.write_text(card(pack.read_facts(known)), encoding="utf-8")
        every = [pack.read_facts(file) for file in sorted(a.folder.glob("*.json"))]
        ready = [f for f in every if "evaluation" in f and "speed" in f]
        (a.folder / "README.md").write_text(overview(ready), encoding="utf-8")
        print(target)


if __name__ == "__main__":
    run_tool(main)
