"""Evaluate a checkpoint on ``Eval`` of a config: ``python tools/eval_rec.py -c output/run/config.yml``.

The checkpoint is ``Global.pretrained_model``, else ``Global.checkpoints``, else ``best.pth`` in
``Global.output_dir``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openrec.cli import run_tool
from openrec.config import add_arguments, load_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args()
    config = load_config(args.config, args.opt)

    from openrec.engine.evaluation import evaluate_config

    evaluate_config(config)


if __name__ == "__main__":
    run_tool(main)
