#!/usr/bin/env python3
"""Render synthetic words into an LMDB, or onto a sheet to look at.

python tools/render_words.py --output DIR --count 100000 --language ko --workers 8
python tools/render_words.py --sheet words.png --language zh
"""

from __future__ import annotations

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from openrec.charset import Charset
from openrec.cli import run_tool
from openrec.data.render.bulk import contact_sheet, write_lmdb
from openrec.data.render.renderer import WordRenderer
from openrec.data.render.words import LANGUAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="LMDB directory to make")
    parser.add_argument("--sheet", metavar="PNG", help="also (or only) draw the first 96 words on one picture")
    parser.add_argument("--count", type=int, default=10000, help="words (default: 10000)")
    parser.add_argument("--language", default="en", choices=LANGUAGES)
    parser.add_argument("--charset", metavar="DICT", help="dictionary file (default: the language's own characters)")
    parser.add_argument("--space", action="store_true", help="also write two words with a space")
    parser.add_argument("--words", nargs="+", help="word files, or: model, random (default: the system's list)")
    parser.add_argument("--fonts", nargs="+", help="font files, directories, families (default: the system's)")
    parser.add_argument("--split", choices=("train", "test"), help="part of all texts (default: all)")
    parser.add_argument("--font-split", choices=("train", "test"), help="part of the font families (default: all)")
    parser.add_argument("--min-length", type=int, default=1, help="characters (default: 1)")
    parser.add_argument("--max-length", type=int, default=25, help="characters (default: 25)")
    parser.add_argument("--height", type=int, nargs=2, default=(20, 64), metavar=("LOW", "HIGH"), help="px")
    parser.add_argument("--strength", type=float, default=1.0, help="0..1, scales distortion and decay (default: 1)")
    for name, what in (("rotation", "turn every word"), ("curvature", "bend every word along an arc")):
        about = f"{what} by so many degrees, either way"
        parser.add_argument(f"--{name}", type=float, nargs=2, metavar=("LEAST", "MOST"), help=about)
    parser.add_argument("--seed", type=int, default=0, help="same seed, same words (default: 0)")
    parser.add_argument("--workers", type=int, default=0, help="processes beside this one (default: 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace an LMDB that is there")
    a = parser.parse_args()
    if not (a.output or a.sheet):
        parser.error("--output or --sheet is needed")
    words = a.words[0] if a.words and a.words[0] in ("model", "random") else a.words
    renderer = WordRenderer(
        Charset.load(a.charset, a.space) if a.charset else None, a.language, fonts=a.fonts, words=words,
        min_length=a.min_length, max_length=a.max_length, height=a.height, strength=a.strength,
        word_split=a.split, font_split=a.font_split, rotation=a.rotation, curvature=a.curvature,
    )  # fmt: skip
    print(*renderer.summary(), sep="\n")
    if a.sheet:
        contact_sheet(renderer, a.sheet, a.seed)
        print(f"sheet: {a.sheet}")
    if a.output:
        print(write_lmdb(renderer, a.output, a.count, a.seed, workers=a.workers, overwrite=a.overwrite))


if __name__ == "__main__":
    run_tool(main)
