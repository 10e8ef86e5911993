#!/usr/bin/env python3
"""Open a page to try models: drop or paste a picture, see the text, the confidences and where the model looked.

python tools/demo_web.py --model output/run/best.pth
python tools/demo_web.py --model output/a/best.pth output/b/best.pth --images crops/   (side by side, with examples)
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from openrec.cli import run_tool
from openrec.reading.inputs import MAX_PIXELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = "checkpoints, exported models, directories of runs, names in weights/: all read every picture"
    parser.add_argument("--model", nargs="+", required=True, help=model)
    parser.add_argument("--images", nargs="+", default=[], help="files, folders, globs that the page offers to try")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets others in your network in (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--branch", default="auto", choices=("auto", "ctc", "gtc"), help="of GTC models")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="larger pictures are refused")
    a = parser.parse_args()

    from openrec.demo_web.server import DemoServer
    from openrec.demo_web.service import Service
    from openrec.recognizer import load

    models = [load(path, device=a.device, branch=a.branch) for path in a.model]
    server = DemoServer(Service(models, a.images, a.max_pixels), a.host, a.port)
    print(f"The page is at {server.url} - Ctrl-C ends it.", flush=True)
    if not server.local_only:
        print(f"Careful: {a.host} can be reached from other machines, and there is no password.", flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs are started with Ctrl-C switched off
        signal.signal(number, signal.default_int_handler)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nended")


if __name__ == "__main__":
    run_tool(main)
