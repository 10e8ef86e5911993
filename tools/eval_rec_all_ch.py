#!/usr/bin/env python3
"""Evaluate one model on the Chinese benchmark BCTR: scene, web, document, handwriting.

python tools/eval_rec_all_ch.py -c output/run/config.yml --root /data
python tools/eval_rec_all_ch.py --model output/run/best.pth --sets NAME=/data/lmdb

Sets that are missing are listed. Writes OpenOCR's CSV file (its rule), one on every sample, and a Markdown table.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from openrec.cli import run_tool
from openrec.engine.benchmark_sets import CHINESE
from openrec.engine.benchmark_tool import parser, run


def main() -> None:
    run(parser(__doc__).parse_args(), CHINESE, "ch")


if __name__ == "__main__":
    run_tool(main)
