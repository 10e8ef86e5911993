#!/usr/bin/env python3
"""Export a trained model for other programs; ``openrec.load`` and ``tools/infer_rec.py`` read each kind as well.

python tools/export_rec.py --model output/run/best.pth --to onnx --output model.onnx --images crops/
python tools/export_rec.py -c configs/rec/svtrv2/svtrv2_rctc.yml --type onnx           (OpenOCR's command line)

Before a file is written, it is compared with PyTorch on --images (else on rendered words).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from openrec.cli import run_tool
from openrec.reading.arguments import add_reading_arguments, model_and_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_reading_arguments(parser)
    kinds = ("onnx", "pt2", "aoti", "safetensors")
    parser.add_argument("--to", "--type", dest="kind", choices=kinds, default="onnx", help="default: onnx")
    parser.add_argument("--output", help="file to write (default: the model's name in export/ beside it)")
    parser.add_argument("--count", type=int, default=200, help="pictures to compare on (default: 200)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="one size for all pictures, px")
    parser.add_argument("--max-width", type=int, help="widest picture, px (default: what the model takes)")
    parser.add_argument("--opset", type=int, default=18, help="of ONNX (default: 18)")
    parser.add_argument("--half", action="store_true", help="float16 weights (safetensors)")
    a = parser.parse_args()

    from openrec.engine.evaluation import checkpoint_of
    from openrec.export.run import KINDS, export
    from openrec.recognizer import load

    model, images, config, _ = model_and_images(a, checkpoint_of, images_needed=False)
    recognizer = load(model, config=config, device="cpu", branch=a.branch)
    source = Path(recognizer.name)
    output = a.output or source.parent / "export" / (source.stem + KINDS[a.kind])
    done = export(
        recognizer, output, a.kind, images=images or None, count=a.count, size=a.size, max_width=a.max_width,
        opset=a.opset, half=a.half, device="cuda" if str(a.device).startswith("cuda") else "cpu",
    )  # fmt: skip
    print(done)


if __name__ == "__main__":
    run_tool(main)
