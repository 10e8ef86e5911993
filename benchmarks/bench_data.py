#!/usr/bin/env python3
"""Samples per second of the data pipeline on one core, against a plain baseline in the same run.

An LMDB of small JPEGs -> decode -> PARSeq augmentation -> ratio resize -> CTC label -> batch tensors.
The baseline does the same steps with Pillow and NumPy, one sample at a time, written the ordinary
way. Both are timed in alternating rounds, in CPU seconds of this process, and the best round counts.

    python benchmarks/bench_data.py --out benchmarks/results/data.json
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import lmdb
import numpy as np
import PIL
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from openrec.charset import Charset
from openrec.data import build_loader
from openrec.data.create_lmdb import LmdbWriter

L = 25
SIZES = {"32x128": (128, 32), "mixed": None}
GREY = (128, 128, 128)


def write_words(path: str, n: int, size: tuple[int, int] | None) -> None:
    """``n`` drawn words as JPEGs of one size, or of heights 24-48 and ratios 0.6-8."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789"))
    with LmdbWriter(path) as writer:
        for _ in range(n):
            h = int(rng.integers(24, 49))
            w, h = size or (max(8, int(h * min(8.0, 0.6 + rng.exponential(2.5)))), h)
            text = "".join(rng.choice(letters, int(rng.integers(1, 13))))
            image = Image.new("RGB", (w, h), tuple(rng.integers(0, 256, 3).tolist()))
            ImageDraw.Draw(image).text((4, h // 4), text, fill=tuple(rng.integers(0, 256, 3).tolist()))
            noisy = np.asarray(image).astype(np.int16) + rng.integers(-12, 13, (h, w, 1))
            data = io.BytesIO()
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=85)
            writer.put(data.getvalue(), text, w, h)


class Ours:
    """The package's own loader."""

    def __init__(self, path: str, batch: int, seed: int) -> None:
        transforms: list[dict[str, Any]] = [
            {"DecodeImagePIL": {"img_mode": "RGB"}},
            {"PARSeqAugPIL": None},
            {"CTCLabelEncode": {"max_text_length": L}},
            {"KeepKeys": {"keep_keys": ["image", "label", "length"]}},
        ]
        train = {
            "dataset": {
                "name": "RatioDataSetTVResize",
                "padding": False,
                "data_dir_list": [path],
                "transforms": transforms,
            },
            "sampler": {"name": "RatioSampler", "scales": [[128, 32]], "first_bs": batch},
            "loader": {"num_workers": 0, "max_ratio": 8},
        }
        self.loader = build_loader({"Global": {}, "Train": train}, "Train", charset=Charset.load(), seed=seed)

    def epoch(self, epoch: int) -> int:
        n = 0
        for batch in self.loader.epoch(epoch):
            n += len(batch)
        return n


class Baseline:
    """Pillow and NumPy, sample by sample."""

    shapes = [(64, 64), (96, 48), (112, 40), (128, 32)]

    def __init__(self, path: str, batch: int, seed: int) -> None:
        self.txn = lmdb.open(path, readonly=True, lock=False).begin()
        self.n, self.batch, self.seed = int(self.txn.get(b"num-samples")), batch, seed
        self.ids = {c: i + 1 for i, c in enumerate("0123456789abcdefghijklmnopqrstuvwxyz")}
        ratios = []
        for i in range(1, self.n + 1):
            w, h = self.txn.get(b"wh-%09d" % i).split(b"_")
            ratios.append(int(w) / int(h))
        self.buckets = np.clip(np.round(ratios), 1, 8).astype(int)

    def epoch(self, epoch: int) -> int:
        rng, n = np.random.default_rng((self.seed, epoch)), 0
        for q in np.unique(self.buckets):
            members = rng.permutation(np.flatnonzero(self.buckets == q))
            for start in range(0, len(members), self.batch):
                items = [self.item(int(i), int(q), epoch) for i in members[start : start + self.batch]]
                images, *_ = (torch.stack(values) for values in zip(*items))
                n += len(images)
        return n

    def item(self, index: int, q: int, epoch: int) -> tuple[torch.Tensor, ...]:
        rng = np.random.default_rng((self.seed, epoch, index))
        data = self.txn.get(b"image-%09d" % (index + 1))
        image = self.augment(Image.open(io.BytesIO(data)).convert("RGB"), rng)
        image = image.resize(self.shapes[q - 1] if q <= 4 else (32 * q, 32), Image.Resampling.BICUBIC)
        array = (np.asarray(image).astype(np.float32) / 255 - 0.5) / 0.5
        ids = [self.ids[c] for c in self.txn.get(b"label-%09d" % (index + 1)).decode().lower() if c in self.ids]
        label = torch.zeros(L, dtype=torch.long)
        label[: len(ids)] = torch.tensor(ids)
        return torch.from_numpy(array.transpose(2, 0, 1).copy()), label, torch.tensor(len(ids))

    def augment(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        for number in rng.choice(16, 3, replace=False):
            if rng.random() < 0.5:
                image = self.apply(int(number), image, rng)
        return image

    def apply(self, number: int, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        sign = 1 if rng.random() < 0.5 else -1
        how = Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC
        w, h = image.size
        factor = 1 + 0.45 * sign
        if number in (10, 11, 12, 13):
            x = sign * {10: 0.45, 12: 0.05 * w}.get(number, 0)
            y = sign * {11: 0.10, 13: 0.15 * h}.get(number, 0)
            matrix = (1, x if number == 10 else 0, x if number == 12 else 0)
            matrix += (y if number == 11 else 0, 1, y if number == 13 else 0)
            return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=how, fillcolor=GREY)
        if number == 14:
            return image.filter(ImageFilter.GaussianBlur(round(min(2, max(1, 0.02 * max(w, h))))))
        if number == 15:
            noise = rng.poisson(round(min(20, max(1, 0.2 * max(w, h)))) | 1, (h, w, 1)) * rng.choice([-1, 1], (h, w, 1))
            return Image.fromarray(np.clip(np.asarray(image).astype(int) + noise, 0, 255).astype(np.uint8))
        if number == 6:
            array = np.asarray(image)
            return Image.fromarray(
                np.where(array < 128, np.minimum(array.astype(int) + 55, 255), array).astype(np.uint8)
            )
        return {
            0: lambda: ImageOps.autocontrast(image),
            1: lambda: ImageOps.equalize(image),
            2: lambda: ImageOps.invert(image),
            3: lambda: image.rotate(15 * sign, expand=True, resample=how, fillcolor=GREY),
            4: lambda: ImageOps.posterize(image, 2),
            5: lambda: ImageOps.solarize(image, 128),
            7: lambda: ImageEnhance.Color(image).enhance(factor),
            8: lambda: ImageEnhance.Contrast(image).enhance(factor),
            9: lambda: ImageEnhance.Brightness(image).enhance(factor),
        }[number]()


def measure(path: str, batch: int, rounds: int) -> dict[str, float]:
    """Best samples per CPU second of both, rounds alternating."""
    rates: dict[str, list[float]] = {"openrec": [], "baseline": []}
    shutil.copytree(path, path + "-copy")  # py-lmdb opens a path once per process
    makers: dict[str, Any] = {"openrec": Ours(path, batch, 0), "baseline": Baseline(path + "-copy", batch, 0)}
    for turn in range(rounds):
        for name in rates:
            start = time.process_time()
            n = makers[name].epoch(turn + 1)
            rates[name].append(n / (time.process_time() - start))
    return {name: round(max(values), 1) for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="JSON file for the result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    result: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "what": "augmented samples per CPU second, one core: LMDB, JPEG decode, PARSeqAug, ratio resize, CTC, collate",
        "samples": args.samples,
        "batch": args.batch,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_words(folder + "/words", args.samples, size)
            rates = measure(folder + "/words", args.batch, args.rounds)
        result[name] = rates | {"speedup": round(rates["openrec"] / rates["baseline"], 2)}
        print(name, result[name], flush=True)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
