"""Many words at once: into an LMDB, or side by side on a sheet."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from openrec.data.create_lmdb import LmdbWriter
from openrec.data.render.fonts import load
from openrec.data.render.renderer import RenderedWord, WordRenderer
from openrec.errors import ConfigError, writing

CHUNK = 64  # words per message from a worker
_worker: list[tuple[WordRenderer, int]] = []


def word(renderer: WordRenderer, seed: int, index: int) -> RenderedWord:
    """Word number ``index`` (from 0) of a series: the same in any process, whatever came before."""
    return renderer.render(np.random.default_rng((seed, index)))


def _start_worker(renderer: WordRenderer, seed: int) -> None:
    cv2.setNumThreads(1)
    _worker[:] = [(renderer, seed)]


def _chunk(start_stop: tuple[int, int]) -> list[RenderedWord]:
    renderer, seed = _worker[0]
    return [word(renderer, seed, index) for index in range(*start_stop)]


def series(renderer: WordRenderer, count: int, seed: int = 0, workers: int = 0) -> Iterator[RenderedWord]:
    """``count`` words in order; equal for any number of ``workers`` (processes beside this one)."""
    if workers <= 0:
        yield from (word(renderer, seed, index) for index in range(count))
        return
    chunks = [(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    # Not forked: OpenCV's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(workers, _start_worker, (renderer, seed)) as pool:
        for words in pool.imap(_chunk, chunks):
            yield from words


def write_lmdb(
    renderer: WordRenderer,
    output: str | os.PathLike,
    count: int,
    seed: int = 0,
    *,
    workers: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> str:
    """Render ``count`` words into an LMDB of the usual layout; returns one line about it.

    Raises:
        DataError: ``output`` is occupied, or the disk is full.
        ConfigError: ``count`` is not positive.
    """
    if count < 1:
        raise ConfigError(f"count: expected a positive number of words, got {count}.")
    begin = time.perf_counter()
    with LmdbWriter(output, overwrite) as writer:
        words = series(renderer, count, seed, workers)
        for rendered in tqdm(words, total=count, desc="words", unit="word", disable=None if progress else True):
            writer.put(rendered.jpeg, rendered.text, *rendered.size)
    seconds = time.perf_counter() - begin
    megabytes = sum(f.stat().st_size for f in Path(output).expanduser().iterdir()) / 1e6
    return f"{output}: {count} words in {seconds:.0f} s ({count / seconds:.0f}/s), {megabytes:.1f} MB"


def contact_sheet(
    renderer: WordRenderer, path: str | os.PathLike, seed: int = 0, columns: int = 8, rows: int = 12
) -> None:
    """Draw the first words of a series with their labels on one picture.

    Raises:
        ConfigError: the ending of ``path`` is no picture's, or it cannot be written.
    """
    if Path(path).suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(f'cannot write "{path}": expected a name that ends in .png, .jpg or .webp.')
    cell_w, cell_h, image_h = 190, 84, 60
    sheet = Image.new("RGB", (columns * cell_w, rows * cell_h), "white")
    draw = ImageDraw.Draw(sheet)
    for index in range(columns * rows):
        rendered = word(renderer, seed, index)
        image = Image.fromarray(rendered.image)
        image.thumbnail((cell_w - 10, image_h))
        x, y = index % columns * cell_w, index // columns * cell_h
        sheet.paste(image, (x + 4, y + 4))
        able = next((f for f in renderer.fonts.faces if f.covers(rendered.text)), renderer.fonts.faces[0])
        draw.text((x + 4, y + 66), rendered.text, fill="black", font=load(able.path, able.index, 12))
    with writing(path, "Choose another --sheet."):
        sheet.save(path)
