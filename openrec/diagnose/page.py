"""Pages: one PNG per image with everything the model told."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from openrec.data import build_loader
from openrec.diagnose.panels import Section, sections
from openrec.diagnose.scalars import scalars, summary
from openrec.diagnose.told import Seen, look
from openrec.errors import ConfigError, writing
from openrec.figure import drawing
from openrec.reading.batches import Failed, Prepare, stack
from openrec.reading.inputs import MAX_PIXELS, sources

logger = logging.getLogger("openrec")
NARROW, WIDE = 6, 2  # cells in a row


def write_page(seen: Seen, path: str | Path) -> Path:
    """Draw one image's page.

    Raises:
        ConfigError: matplotlib is missing.
    """
    rows = [(section, cells) for section in sections(seen) for cells in _rows(section)]
    path = Path(path)
    with drawing((seen.decoded.text, seen.truth or "", seen.name)) as figure_type:
        figure = _page(figure_type, seen, rows)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=100)
    return path


def _page(figure_type: Any, seen: Seen, rows: Sequence[tuple[Section, list[Any]]]) -> Any:
    ratio = max(seen.image.shape[1] / seen.image.shape[0], 1.0)
    figure = figure_type(figsize=(12, 1.5 + sum(_height(s, ratio) for s, _ in rows)), layout="constrained")
    parts = figure.subfigures(
        1 + len(rows), 1, height_ratios=[1.5, *(_height(s, ratio) for s, _ in rows)], squeeze=False
    )
    _header(parts[0, 0], seen)
    previous = None
    for part, (section, cells) in zip(parts[1:, 0], rows):
        if section is not previous:
            part.suptitle(section.title, fontsize=9, weight="bold", x=0.01, ha="left")
        previous = section
        axes = part.subplots(1, WIDE if section.wide else NARROW, squeeze=False)[0]
        for axis in axes:
            axis.set_axis_off()
        for axis, (caption, draw) in zip(axes, cells):
            draw(axis)
            axis.set_title(caption, fontsize=7, pad=2)
    return figure


def _rows(section: Section) -> Iterator[list[Any]]:
    size = WIDE if section.wide else NARROW
    for start in range(0, len(section.cells), size):
        yield section.cells[start : start + size]


def _height(section: Section, ratio: float) -> float:
    """Inches of a row."""
    return min(3.5, 12 / (WIDE if section.wide else NARROW) / ratio + 0.55)


def _header(part: Any, seen: Seen) -> None:
    part.suptitle(seen.name[-150:], fontsize=7, x=0.01, ha="left", parse_math=False)
    picture, text = part.subplots(1, 2, width_ratios=[1, 2])
    picture.imshow(seen.image)
    wrong = seen.truth is not None and seen.decoded.text.lower() != seen.truth.lower()
    lines = [
        f"{seen.decoded.text or '(nothing)'}   {seen.decoded.score:.2f}" + (f"   true: {seen.truth}" if wrong else "")
    ]
    scores = [f"{c} {s:.2f}" for c, s in zip(seen.decoded.text, seen.decoded.char_scores)]
    lines += ["  ".join(scores[i : i + 16]) for i in range(0, len(scores), 16)]
    batch = {where: [torch.from_numpy(a)[None] for a in arrays] for where, arrays in seen.told.items()}
    numbers = [f"{k} {v:.3g}" for k, v in summary(scalars(batch)).items() if math.isfinite(v)]
    lines += ["   ".join(numbers[i : i + 6]) for i in range(0, len(numbers), 6)]
    text.text(0, 0.95, "\n".join(lines), va="top", fontsize=8, color="crimson" if wrong else "black", parse_math=False)
    for axis in (picture, text):
        axis.set_axis_off()


def pages(
    recognizer: Any, output: str | Path, images: Any = None, config: Mapping[str, Any] | None = None, count: int = 8
) -> Iterator[tuple[Seen | Failed, Path | None]]:
    """Read and draw images one by one.

    Args:
        recognizer: see ``openrec.load``; it has to run PyTorch.
        images: files, folders, arrays; None: the first ones of the config's ``Eval``.
        count: the most pages.
    """
    if count < 1:
        raise ConfigError(f"count: expected at least 1 page, got {count}.")
    given = _of_eval(recognizer, config) if images is None else _of_files(recognizer, images)
    for number, item in enumerate(given):
        if number >= count:
            return
        if isinstance(item, Failed):
            yield item, None
            continue
        name, image, truth = item
        seen = look(recognizer, image, name, truth)
        stem = re.sub(r"[^\w.-]+", "_", Path(name).stem)[-40:] or "image"
        yield seen, write_page(seen, Path(output) / f"{number:03d}_{stem}.png")


def _of_files(recognizer: Any, images: Any) -> Iterable[Any]:
    prepare = Prepare(recognizer.preprocess, "RGB", MAX_PIXELS)
    for source in sources(images):
        item = prepare(0, source)
        if not isinstance(item, Failed) and item.image.ndim == 4:
            item = Failed(0, item.name, item.size, "is read in windows, which have no page; give single words")
        yield item if isinstance(item, Failed) else (item.name, torch.from_numpy(stack([item]))[0], None)


def _of_eval(recognizer: Any, config: Mapping[str, Any] | None) -> Iterable[Any]:
    config = config if config is not None else recognizer.card.config
    if not config.get("Eval"):
        raise ConfigError("the config has no Eval section; give pictures with --images.")
    loader = build_loader(config, "Eval", charset=recognizer.card.charset)
    try:
        for batch in loader.epoch(1):
            for image, name, text in zip(batch.tensors[0], batch.names, batch.texts):
                yield name, image, text
    finally:
        loader.close()
