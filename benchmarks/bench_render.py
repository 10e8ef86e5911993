#!/usr/bin/env python3
"""Rendered words per second on one core, JPEG included, beside a plain-Pillow renderer.

    python benchmarks/bench_render.py --count 3000

The baseline does what one writes first: ImageDraw on a canvas, then Pillow's rotate, perspective
transform, blur, NumPy noise, resize and JPEG, with the same texts, faces and heights. It lacks
outlines, shadows, textures, curves, character boxes and the legibility check. Both run in turns within
one process, so that a busy machine slows both; times are CPU seconds of the process.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from openrec.data.render import WordRenderer

TURN = 250  # words before the other renderer's turn
GOAL = 600  # words per second


def plain_pillow(rng: np.random.Generator, text: str, path: str, index: int, height: int) -> bytes:
    """The baseline: one word as JPEG bytes."""
    font = ImageFont.truetype(path, int(height * 1.2), index) if path else ImageFont.load_default(int(height * 1.2))
    left, top, right, bottom = font.getbbox(text)
    pad = height // 2
    size = (int(right - left) + 2 * pad, int(bottom - top) + 2 * pad)
    image = Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist()))
    ImageDraw.Draw(image).text((pad - left, pad - top), text, tuple(rng.integers(0, 256, 3).tolist()), font)
    image = image.rotate(rng.normal(0, 5), Image.Resampling.BILINEAR, expand=True)
    w, h = image.size
    tilt = [
        1,
        rng.uniform(-0.1, 0.1),
        0,
        rng.uniform(-0.05, 0.05),
        1,
        0,
        rng.uniform(0, 0.2) / w,
        rng.uniform(0, 0.2) / h,
    ]
    image = image.transform((w, h), Image.Transform.PERSPECTIVE, tilt, Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    image = image.crop((pad // 2, pad // 2, w - pad // 2, h - pad // 2))
    image = image.resize((max(8, round(image.width * height / image.height)), height), Image.Resampling.BICUBIC)
    noisy = np.asarray(image, np.float32) + rng.normal(0, rng.uniform(0, 7), (height, image.width, 3))
    out = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=int(rng.integers(35, 96)))
    return out.getvalue()


def measure(renderer: WordRenderer, count: int) -> dict[str, float]:
    """Words per CPU second of both renderers: median and best turn."""
    by_name = {face.name: face for face in renderer.fonts.faces}
    rates: dict[str, list[float]] = {"ours": [], "pillow": []}
    size = 0
    for start in range(0, count, TURN):
        indices = range(start, min(start + TURN, count))
        begin = time.process_time()
        words = [renderer.render(np.random.default_rng((0, i))) for i in indices]
        rates["ours"].append(len(words) / (time.process_time() - begin))
        size += sum(len(word.jpeg) for word in words)
        begin = time.process_time()
        for i, word in zip(indices, words):
            face = by_name[word.font]
            plain_pillow(np.random.default_rng((1, i)), word.text, face.path, face.index, word.size[1])
        rates["pillow"].append(len(words) / (time.process_time() - begin))
    result = {}
    for who, values in rates.items():
        result |= {f"{who}_words_per_second": round(float(np.median(values))), f"{who}_best_turn": round(max(values))}
    return result | {"jpeg_bytes_per_word": round(size / count)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--languages", nargs="+", default=["en"])
    parser.add_argument("--fonts", nargs="+", help="font files, directories, families (default: the system's)")
    parser.add_argument("--output", default=str(Path(__file__).parent / "results" / "render.json"))
    args = parser.parse_args()
    cv2.setNumThreads(1)
    report: dict[str, object] = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python benchmarks/bench_render.py " + " ".join(sys.argv[1:]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "cv2": cv2.__version__,
            "PIL": PIL.__version__,
        },
        "goal_words_per_second": GOAL,
    }
    for language in args.languages:
        begin = time.perf_counter()
        renderer = WordRenderer(language=language, fonts=args.fonts)
        start_up = time.perf_counter() - begin
        for i in range(200):  # textures, first glyphs
            renderer.render(np.random.default_rng((9, i)))
        found = {"faces": len(renderer.fonts.faces), "start_up_seconds": round(start_up, 2), "words": args.count}
        report[language] = result = found | measure(renderer, args.count)
        print(language, json.dumps(result))
    Path(args.output).parent.mkdir(exist_ok=True)
    Path(args.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
