"""Train a recogniser: ``python tools/train_rec.py -c configs/rec/svtrv2/svtrv2_mamba_tiny.yml -o Global.epoch_num=2``.

The same command continues a run that was stopped. With several GPUs:
``torchrun --nproc_per_node=4 tools/train_rec.py -c ...``.
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
    parser.add_argument("--eval", action="store_true", default=True, help="kept for old command lines; always on")
    args = parser.parse_args()
    config = load_config(args.config, args.opt)

    from openrec.engine.trainer import Trainer  # torch is imported once the arguments are known to be good

    Trainer(config).train()


if __name__ == "__main__":
    run_tool(main)
