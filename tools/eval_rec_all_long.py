#!/usr/bin/env python3
"""Evaluate one model on long text lines (the benchmark LTB).

python tools/eval_rec_all_long.py -c output/run/config.yml -o Eval.loader.max_ratio=20 --root /data
python tools/eval_rec_all_long.py -c output/run/config.yml --simple --root /data     (list files of pictures)

Sets that are missing are listed. Writes OpenOCR's CSV file (its rule), one on every sample, and a Markdown table.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from openrec.cli import run_tool
from openrec.engine.benchmark_sets import LONG, LONG_LISTS
from openrec.engine.benchmark_tool import parser, run


def main() -> None:
    a = parser(__doc__, simple=True).parse_args()
    run(a, LONG_LISTS if a.simple else LONG, "long_simple" if a.simple else "long")


if __name__ == "__main__":
    run_tool(main)
