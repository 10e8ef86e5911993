#!/usr/bin/env python3
"""Draw the training curves of one or several runs from their log.jsonl.

python tools/plot_log.py output/run
python tools/plot_log.py output/run_a output/run_b --output compared.png
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from openrec.cli import run_tool
from openrec.curves import plot_logs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="directories of runs, or log.jsonl files")
    parser.add_argument("--output", help="PNG, SVG or PDF (default: curves.png in the first run)")
    parser.add_argument("--smoothing", type=float, default=0.8, help="0 (none) to below 1 (default: 0.8)")
    a = parser.parse_args()
    first = Path(a.runs[0])
    output = a.output or (first if first.is_dir() else first.parent) / "curves.png"
    print(plot_logs(a.runs, output, a.smoothing))


if __name__ == "__main__":
    run_tool(main)
