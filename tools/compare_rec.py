#!/usr/bin/env python3
"""Compare systems: the same data, seed and budget, one table.

    python tools/compare_rec.py -c configs/rec/svtrv2/svtrv2_mamba_tiny.yml configs/rec/satrn/satrn_tiny.yml \\
        --minutes 20 --real words/ --output compared/

Minutes are CPU time on a CPU (whatever else the machine does) and wall time on a GPU. The same command goes on where it
was stopped and does not repeat what is finished; more systems can be added to the same --output. Started twice, the two
share the systems between them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from openrec.cli import run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--configs", nargs="+", default=[], metavar="YML")
    parser.add_argument("--steps", type=int, help="optimizer steps of each system")
    parser.add_argument("--minutes", type=float, help="minutes of training work of each system")
    parser.add_argument("--seed", type=int, default=48)
    parser.add_argument("-o", "--opt", nargs="*", default=[], metavar="KEY=VALUE", help="changes to every config")
    parser.add_argument("--real", nargs="+", default=[], metavar="DIR", help="real words to score too: LMDBs, or "
                        "directories of images with labels.tsv (file<TAB>text)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="of each system (default: %(default)s)")
    parser.add_argument("--output", default="compared", help="directory (default: %(default)s)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--table-only", action="store_true", help="table and pictures from what is in --output")
    only.add_argument("--measure-again", action="store_true", help="speeds and memory of what is in --output once "
                      "more, on a machine that is quiet now")  # fmt: skip
    a = parser.parse_args()

    from openrec.compare.budget import Budget
    from openrec.compare.run import LeftOut, compare, measure_all_again, write_table
    from openrec.compare.systems import Conditions

    failure = None
    if not (a.configs or a.table_only or a.measure_again):
        parser.error("-c: give the systems to compare.")
    try:
        if a.table_only:
            write_table(Path(a.output))
        elif a.measure_again:
            measure_all_again(Path(a.output))
        else:
            conditions = Conditions(Budget(a.steps, a.minutes), a.seed, tuple(a.opt), tuple(a.real), a.threads)
            command = "python tools/compare_rec.py " + shlex.join(sys.argv[1:])
            compare(a.configs, a.output, conditions, command=command)
    except LeftOut as error:
        failure = error
    table = Path(a.output, "table.md")
    if table.exists():
        print(table.read_text(encoding="utf-8"))
    if failure:
        raise failure


if __name__ == "__main__":
    run_tool(main)
