#!/usr/bin/env python3
"""Write a dictionary (one character a line) from named sets of characters, and from labels.

python tools/make_dict.py --output korean.txt --sets ascii korean-2350
python tools/make_dict.py --output own.txt --sets ascii --labels words/labels.tsv
python tools/make_dict.py --list

A space is no line of a dictionary: set Global.use_space_char: True.
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from openrec.cli import run_tool
from openrec.data.check import records_of
from openrec.dictionary import SETS, characters_of, write_dictionary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="file to write")
    parser.add_argument("--sets", nargs="+", default=[], metavar="SET", help="see --list")
    parser.add_argument("--chars", default="", help="further characters")
    parser.add_argument("--labels", nargs="+", default=[], help="label files or LMDBs whose characters are added")
    parser.add_argument("--list", action="store_true", help="list the sets")
    a = parser.parse_args()
    if a.list:
        for name, (about, make) in SETS.items():
            print(f"{name:13} {len(make()):6}  {about}")
        return
    if not a.output:
        parser.error("--output is needed (or --list)")
    texts = [record.label or "" for path in a.labels for record in records_of(path)]
    characters = characters_of(a.sets, a.chars, texts)
    write_dictionary(a.output, characters)
    space = " Labels hold spaces: set Global.use_space_char: True." if any(" " in text for text in texts) else ""
    print(f"{a.output}: {len(characters)} characters.{space}")


if __name__ == "__main__":
    run_tool(main)
