#!/usr/bin/env python3
"""Reading many picture files in one call: pictures per second and memory, one in a hundred of them broken.

Words are rendered into files of several ratios; a small SVTRv2Mamba with random weights reads them through
``openrec.load`` on one core, one by one and in batches. Memory is this process's peak after each call.

    python benchmarks/bench_read.py --count 20000 --out benchmarks/results/bench_read.json
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch

import openrec
from openrec.charset import Charset
from openrec.checkpoint import save_checkpoint
from openrec.config import load_config
from openrec.reading.loading import ModelCard

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "rec" / "svtrv2" / "svtrv2_mamba_tiny.yml"


def write_files(folder: Path, distinct: int = 500) -> list[str]:
    """Drawn words of four ratios."""
    rng = np.random.default_rng(0)
    for i in range(distinct):
        width = (40, 64, 96, 128)[i % 4]
        image = np.full((32, width, 3), rng.integers(120, 256, 3), np.uint8)
        cv2.putText(image, str(rng.integers(0, 10 ** (width // 16))), (3, 23), 0, 0.7, (20, 20, 20), 2)
        cv2.imwrite(str(folder / f"{i:05d}.jpg"), image)
    (folder / "broken.jpg").write_bytes((folder / "00000.jpg").read_bytes()[:200])
    return sorted(str(p) for p in folder.glob("0*.jpg"))


def write_model(path: Path) -> Path:
    config = load_config(CONFIG)
    buckets = {
        "name": "RatioDataSetTVResize",
        "padding": False,
        "transforms": [{"DecodeImagePIL": {"img_mode": "RGB"}}],
    }
    config["Eval"] = {"dataset": buckets, "loader": {"max_ratio": 4}}
    charset = Charset.load()
    model = ModelCard.from_checkpoint({"config": config, "charset": charset.state()}, "benchmark").build()
    save_checkpoint({"config": config, "charset": charset.state(), "state_dict": model.state_dict()}, path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "date": str(datetime.date.today()), "what": "pictures per second of one call, files to texts, one core",
        "model": CONFIG.stem + " in four ratio buckets, random weights", "count": a.count, "torch": torch.__version__,
        "python": platform.python_version(), "machine": platform.machine(), "load": round(os.getloadavg()[0], 1),
        "runs": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        files, bad = write_files(Path(directory)), str(Path(directory) / "broken.jpg")
        recognizer = openrec.load(write_model(Path(directory) / "model.pth"), device="cpu")
        names = [bad if i % 100 == 50 else files[i % len(files)] for i in range(a.count)]
        for batch_size, workers, count in (
            (1, 0, a.count // 10),
            (32, 0, a.count),
            (32, 1, a.count),
            (128, 0, a.count),
        ):
            recognizer(names[: count // 10], batch_size=batch_size)  # memory must not grow from here on
            before, start = peak(), time.perf_counter()
            texts = recognizer(names[:count], batch_size=batch_size, workers=workers)
            seconds = time.perf_counter() - start
            failed = sum(t.error is not None for t in texts)
            assert len(texts) == count and failed == sum(n == bad for n in names[:count])
            run = {"batch_size": batch_size, "workers": workers, "pictures": count, "broken": failed}
            run |= {"per_second": round(count / seconds), "peak_mb": round(peak()), "grown_mb": round(peak() - before)}
            print(run, flush=True)
            result["runs"].append(run)
    if a.out:
        a.out.write_text(json.dumps(result, indent=1) + "\n")


def peak() -> float:
    """Largest resident memory so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
