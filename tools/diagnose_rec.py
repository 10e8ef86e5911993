#!/usr/bin/env python3
"""Draw what a model does inside, one page for each image.

    python tools/diagnose_rec.py -c configs/rec/dat/dat_tiny.yml --output diagnosed/
    python tools/diagnose_rec.py --model output/run/best.pth --images crops/ --output diagnosed/

Pages show what the model's modules tell: sampling points and offsets, attention for each character, the rectified image
with its grid, boxes with scores, column attention and alignment. Without --images they show the words of Eval.
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from openrec.cli import run_tool
from openrec.errors import DataError
from openrec.reading.arguments import add_reading_arguments, model_and_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_reading_arguments(parser)
    parser.add_argument("--output", default="diagnosed", help="directory for the pages (default: %(default)s)")
    parser.add_argument("--count", type=int, default=8, help="the most pages (default: %(default)s)")
    a = parser.parse_args()

    from openrec.diagnose.page import pages
    from openrec.engine.evaluation import checkpoint_of
    from openrec.reading.batches import Failed
    from openrec.recognizer import load

    model, images, config, device = model_and_images(a, checkpoint_of, images_needed=False)
    recognizer, written = load(model, config=config, device=device, branch=a.branch), 0
    for seen, path in pages(recognizer, a.output, images, config, a.count):
        written += path is not None
        told = f"not read: {seen.reason}" if isinstance(seen, Failed) else f"{seen.decoded.text}\t{path}"
        print(f"{seen.name}\t{told}")
    if not written:
        raise DataError("not one picture could be read; the reasons stand above.")


if __name__ == "__main__":
    run_tool(main)
