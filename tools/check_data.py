#!/usr/bin/env python3
"""What is wrong with training and test data, and which settings they ask for.

python tools/check_data.py --train data/train_lmdb --test data/test_lmdb --out check/
python tools/check_data.py --train words/labels.tsv --dict my_dictionary.txt --strict

A directory is searched for LMDBs, a file is a label file (path<TAB>text, OpenOCR's list, CSV or JSON lines).
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tqdm import tqdm

from openrec.charset import Charset
from openrec.cli import run_tool
from openrec.data.check import SetReport, advise, check_set, records_of, same_pictures
from openrec.data.check_report import Findings, write
from openrec.errors import DataError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs="+", default=[], help="LMDB directories or label files")
    parser.add_argument("--test", nargs="+", default=[], help="the same, held out")
    parser.add_argument("--images", help="root of the paths in label files (default: the file's directory)")
    parser.add_argument("--dict", help="dictionary that the model will have (default: not checked)")
    parser.add_argument("--alphanumeric", action="store_true", help="check against 0-9 and a-z, case folded")
    parser.add_argument("--space", action="store_true", help="use_space_char: a space is in the dictionary")
    parser.add_argument("--max-text-length", type=int, default=25, help="longest label (default: 25)")
    parser.add_argument("--max-ratio", type=int, help="of the loader (default: no limit)")
    parser.add_argument("--out", metavar="DIR", help="write report, list of problems, dictionary and histograms there")
    parser.add_argument("--workers", type=int, default=2, help="threads that open pictures (default: 2)")
    parser.add_argument("--strict", action="store_true", help="exit status 1 when anything was found")
    a = parser.parse_args()
    if not (a.train or a.test):
        parser.error("--train or --test is needed")
    charset = Charset.load(a.dict, a.space) if a.dict or a.alphanumeric else None

    def check(path: str) -> SetReport:
        with tqdm(desc=path, unit="img", disable=None) as bar:
            records = records_of(path, a.images)
            return check_set(
                path, records, charset, a.max_text_length, a.max_ratio, a.workers, lambda: bar.update() and None
            )

    findings = Findings([check(p) for p in a.train], [check(p) for p in a.test])
    reports = [*findings.train, *findings.test]
    doubles = {r.name: same_pictures(r.seen) for r in reports}
    leaks = {f"{x.name} and {y.name}": same_pictures(x.seen, y.seen) for x in findings.train for y in findings.test}
    findings.doubles = {name: pairs for name, pairs in doubles.items() if pairs}
    findings.leaks = {name: pairs for name, pairs in leaks.items() if pairs}
    findings.advice = advise(findings.train or findings.test)
    print(*findings.lines(), sep="\n")
    if a.out:
        print(f"written to {a.out}: {', '.join(write(findings, a.out))}")
    if a.strict and not findings.clean:
        raise DataError("the data have problems, listed above.")


if __name__ == "__main__":
    run_tool(main)
