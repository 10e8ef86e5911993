#!/usr/bin/env python3
"""Make an LMDB from an image folder and a label file, or check one that exists.

python tools/create_lmdb_dataset.py --images DIR --labels FILE --output DIR
python tools/create_lmdb_dataset.py --check DIR
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from openrec.cli import run_tool
from openrec.data.annotations import FORMATS
from openrec.data.create_lmdb import check, convert
from openrec.errors import DataError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="root of the relative paths in the label file (default: its directory)")
    parser.add_argument("--labels", help="label file: TSV, OpenOCR's list, CSV or JSON lines")
    parser.add_argument("--output", help="LMDB directory to make")
    parser.add_argument("--format", choices=FORMATS, help="of the label file (default: by its ending)")
    parser.add_argument("--max-len", type=int, default=800, help="longest label in characters (default: 800)")
    parser.add_argument("--overwrite", action="store_true", help="replace an LMDB that is there")
    parser.add_argument("--check", metavar="DIR", help="read every record of an existing LMDB and list the problems")
    args = parser.parse_args()
    if args.check:
        outcome = check(args.check)
        print(f"{args.check}: {outcome}")
        if outcome.problems:
            raise DataError(f"{args.check} has problems, listed above. Training names and skips such records.")
        return
    if not (args.labels and args.output):
        parser.error("--labels and --output are needed (or --check)")
    images = args.images or os.path.dirname(os.path.abspath(args.labels))
    outcome = convert(
        images,
        args.labels,
        args.output,
        file_format=args.format,
        max_len=args.max_len,
        overwrite=args.overwrite,
    )
    print(f"{args.output}: {outcome}")


if __name__ == "__main__":
    run_tool(main)
