#!/usr/bin/env python3
"""Read pictures of words with a trained model.

python tools/infer_rec.py --model output/run/best.pth --images crops/ --html results.html
python tools/infer_rec.py -c configs/rec/svtrv2/svtrv2_rctc.yml -o Global.infer_img=crops/   (OpenOCR's command line)
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from openrec.cli import run_tool
from openrec.errors import DataError
from openrec.reading.arguments import add_reading_arguments, model_and_images
from openrec.reading.outputs import FORMATS, RESULTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_reading_arguments(parser)
    parser.add_argument("--output", default=RESULTS, help="result file (default: %(default)s)")
    parser.add_argument("--format", choices=FORMATS, help="of the result file (default: by its ending)")
    parser.add_argument("--html", metavar="FILE", help="also a page with the pictures beside their texts")
    parser.add_argument("--labels", metavar="FILE", help="true texts, to mark on that page what was read wrongly")
    parser.add_argument("--explain", metavar="DIR", help="also a page for each picture: where the model looked")
    parser.add_argument("--workers", type=int, default=0, help="threads that open pictures (default: 0)")
    parser.add_argument("--amp", action="store_true", help="bf16 autocast")
    parser.add_argument("--quiet", action="store_true", help="no line for each picture")
    a = parser.parse_args()

    from openrec.engine.evaluation import checkpoint_of
    from openrec.reading.inference import read_to_files
    from openrec.recognizer import load

    model, images, config, device = model_and_images(a, checkpoint_of)
    recognizer = load(model, config=config, device=device, branch=a.branch, amp=a.amp)
    each = None
    if a.explain:
        from openrec.reading.word_page import page_writer

        each = page_writer(recognizer, a.explain, a.max_pixels)
    tally = read_to_files(
        recognizer, images, a.output, file_format=a.format, page=a.html, labels=a.labels, batch_size=a.batch_size,
        workers=a.workers, max_pixels=a.max_pixels, show=not a.quiet, each=each,
    )  # fmt: skip
    print(*tally.lines(), f"results: {a.output}" + (f", page: {a.html}" if a.html else ""), sep="\n")
    if not tally.read:
        raise DataError("not one picture could be read; the reasons stand above.")


if __name__ == "__main__":
    run_tool(main)
