#!/usr/bin/env python3
"""Make an LMDB of real words for training that holds no word that models are scored on.

python tools/prepare_real.py --words ic15_train --tests real_words --output data/real

--words: a folder with labels.tsv (file<TAB>text). Every tenth row is left out for evaluation (tools/eval_weights.py
--held-out), and so is every picture that a held-out row or a folder of --tests shows, under any name or compression.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openrec.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", required=True, metavar="DIR")
    parser.add_argument("--tests", nargs="*", default=[], metavar="DIR")
    parser.add_argument("--output", required=True, metavar="DIR", help="LMDB to make")
    parser.add_argument("--overwrite", action="store_true")
    a = parser.parse_args()

    from openrec.shipping.split import prepare_real

    print(f"{a.output}: {prepare_real(a.words, a.output, a.tests, overwrite=a.overwrite)}.")


if __name__ == "__main__":
    run_tool(main)
