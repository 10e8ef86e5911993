#!/usr/bin/env python3
"""Score a packed model on words that its training never held: every sample, a table per set and script, and its speed.

python tools/eval_weights.py --model weights/tiny-en.safetensors --held-out ic15_train --words real_words \
    --training data/real --output weights/tiny-en.json

--held-out: folders with labels.tsv of which every tenth row counts; --words: of which all rows count. --training: LMDBs
or label files that the model was trained on, or the word "rendered" where it saw no photograph; their pictures are
compared with those of the test sets, and the tool refuses to score when one is in both.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openrec.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--held-out", nargs="*", default=[], metavar="DIR")
    parser.add_argument("--words", nargs="*", default=[], metavar="DIR")
    parser.add_argument("--rendered", type=int, default=2000, help="rendered words; 0: none (default: 2000)")
    parser.add_argument("--max-length", type=int, default=10, help="of rendered words, in characters (default: 10)")
    parser.add_argument("--training", nargs="+", required=True, metavar="PATH", help='or "rendered"')
    parser.add_argument("--threads", type=int, default=2, help="for the speed (default: 2)")
    parser.add_argument("--output", type=Path, help="JSON to write into, e.g. weights/NAME.json")
    a = parser.parse_args()

    from openrec.recognizer import load
    from openrec.shipping import overlap, pack, score, wordsets

    recognizer = load(a.model, device="cpu")
    sets = [wordsets.held_out_words(d) for d in a.held_out] + [wordsets.all_words(d) for d in a.words]
    compared = None
    if a.training != ["rendered"]:
        training = overlap.fingerprints(a.training)
        overlap.refuse_overlap(overlap.overlap(training, sets))
        compared = {"training": len(training), "tests": sum(len(s.words) for s in sets)}
    if a.rendered:
        language = wordsets.language_of(recognizer.charset)
        sets.append(wordsets.rendered_words(recognizer.charset, language, a.rendered, a.max_length))
    evaluation = {**score.evaluate(recognizer, sets), "overlap": compared}
    speed = score.speed(recognizer, a.threads)
    print("\n".join(score.tables(evaluation)))
    for batch, row in speed["batches"].items():
        print(f"batch {batch}: {row['images_per_second']} images per second, {a.threads} threads, load {speed['load']}")
    if a.output:
        pack.write_facts(a.output, pack.read_facts(a.output) | {"evaluation": evaluation, "speed": speed})


if __name__ == "__main__":
    run_tool(main)
