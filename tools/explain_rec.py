#!/usr/bin/env python3
"""Write one page for each picture: what was read, how sure, and where the model looked.

python tools/explain_rec.py --model output/run/best.pth --images crops/ --output explained/
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
    parser.add_argument("--output", default="explained", help="directory for the pages (default: %(default)s)")
    a = parser.parse_args()

    from openrec.engine.evaluation import checkpoint_of
    from openrec.reading.inputs import sources
    from openrec.reading.word_page import page_writer
    from openrec.recognizer import load

    model, images, config, device = model_and_images(a, checkpoint_of)
    recognizer = load(model, config=config, device=device, branch=a.branch)
    write, written = page_writer(recognizer, a.output, max_pixels=a.max_pixels), 0
    for source in sources(images):
        page = write(source)
        written += page.path is not None
        print(f"{source.name}\t" + (f"not read: {page.error}" if page.error else f"{page.text}\t{page.path}"))
    if not written:
        raise DataError("not one picture could be read; the reasons stand above.")


if __name__ == "__main__":
    run_tool(main)
