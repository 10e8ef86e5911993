"""One page for one picture: what was read, column by column, where each character was looked at, sampling points.

Everything is drawn as SVG over the picture that the model saw, in one HTML file that needs nothing else.
"""

from __future__ import annotations

import base64
import html
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from openrec.errors import ConfigError, SampleError
from openrec.reading.inputs import MAX_PIXELS, Source
from openrec.reading.looking import Explanation, Points, explain
from openrec.reading.page import color_of, marked

_WIDTH = 720  # px of the large pictures
_GROUPS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
STYLE = """
:root { color-scheme: light dark; --quiet: #777; --line: #8884; }
body { font: 15px/1.5 system-ui, "Noto Sans", sans-serif; margin: 2rem auto; max-width: 780px; padding: 0 1rem; }
h1 { font-size: 2rem; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
h1 span { border-bottom: .16em solid; margin-right: 1px; }
h2 { font-size: 1.05rem; margin: 2rem 0 .3rem; }
p { margin: .2rem 0 .6rem; }
.quiet, figcaption { color: var(--quiet); font-size: .85rem; overflow-wrap: anywhere; }
figure { margin: 0 0 1rem; display: inline-block; }
svg { display: block; width: 100%; height: auto; }
.small { display: flex; flex-wrap: wrap; gap: .8rem; }
.small figure { width: 160px; margin: 0; }
.small figcaption { text-align: center; font-size: 1rem; color: inherit; }
text { font-family: system-ui, "Noto Sans", sans-serif; }
"""


def page(found: Explanation) -> str:
    """The HTML of an explanation."""
    text, scores = found.decoded.text, found.decoded.char_scores
    parts = [
        "<!doctype html>\n",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(text or 'nothing')}</title><style>{STYLE}</style></head><body>",
        f'<h1 dir="auto">{marked(text, scores) or "(nothing)"}</h1>',
        f'<p class="quiet">score {found.decoded.score:.3f}, the mean of the characters\' probabilities: '
        f"{_numbers(found)}<br>{html.escape(found.name)}</p>",
        sections(found),
        "</body></html>\n",
    ]
    return "".join(parts)


def sections(found: Explanation) -> str:
    """What stands below the text: transform, columns, where each character was looked at, sampling points."""
    return _transform(found) + _picture_section(found) + _looks(found) + _sampling(found)


def _numbers(found: Explanation) -> str:
    pairs = zip(characters(found), found.decoded.char_scores)
    return html.escape(" · ".join(f"{c} {s:.2f}" for c, s in pairs))


def characters(found: Explanation) -> list[str]:
    """One text per score; a dictionary line may hold several code points."""
    text, n = found.decoded.text, len(found.decoded.char_scores)
    if found.frames and len(text) != n:
        return [found.tokens[found.frames[p][0]] for p in found.decoded.positions]
    return list(text) if len(text) == n else [""] * n


def _svg(image: np.ndarray, inside: str, extra: float = 0.0, gray: bool = False) -> str:
    """A drawing in pixels of the picture below it; ``extra`` px of room under the picture."""
    height, width = image.shape[:2]
    return (
        f'<svg viewBox="0 0 {width} {height + extra:g}" style="max-width:{_WIDTH}px" role="img">'
        f'<image href="{png(image, gray)}" width="{width}" height="{height}" '
        f'preserveAspectRatio="none"/>{inside}</svg>'
    )


def png(image: np.ndarray, gray: bool = False) -> str:
    """A picture as a ``data:`` address."""
    if gray:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, 2)
    data = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
    return "data:image/png;base64," + base64.b64encode(data).decode()


# ---- the input, its columns or boxes -----------------------------------------------------------------


def _picture_section(found: Explanation) -> str:
    height, width = found.seen.shape[:2]
    size = f"{width} x {height} px{', rectified' if found.grid is not None else ''}"
    padding = "" if found.valid >= 1 else f", of which {100 * found.valid:.0f} % of the width is picture"
    if found.frames:
        title = "Column by column"
        note = (
            f"The input ({size}{padding}) and the CTC head's best class for each of its {len(found.frames)} columns. "
            "Bars are probabilities; grey ones are blanks. A character counts once where its bars touch."
        )
        return f'<h2>{title}</h2><p class="quiet">{note}</p>{_alignment(found)}'
    boxes = "".join(_box(found, b, c, s) for b, c, s in zip(found.boxes, characters(found), found.decoded.char_scores))
    return f'<h2>The input</h2><p class="quiet">{size}{padding}</p>{_svg(found.seen, boxes)}'


def _alignment(found: Explanation) -> str:
    height, width = found.seen.shape[:2]
    step, room = width / len(found.frames), max(14.0, 0.45 * width * 0.4)
    base = height + room - 6
    full, parts = room - 12, []
    starts = set(found.decoded.positions)
    for t, (token, score) in enumerate(found.frames):
        x, h = t * step, full * score
        color = color_of(score) if token else "#9995"
        name = found.tokens[token] if token else "blank"
        parts.append(
            f'<rect x="{x + 0.05 * step:.2f}" y="{base - h:.2f}" width="{0.9 * step:.2f}" height="{h:.2f}" '
            f'fill="{color}"><title>column {t}: {html.escape(name)} {score:.3f}</title></rect>'
        )
        if t in starts:
            parts.append(
                f'<text x="{x + step / 2:.2f}" y="{base + 5:.2f}" font-size="5.5" text-anchor="middle" '
                f'fill="currentColor">{html.escape(name)}</text>'
                f'<line x1="{x + step / 2:.2f}" x2="{x + step / 2:.2f}" y1="0" y2="{height}" stroke="#fff" '
                'stroke-width=".5" opacity=".8"/>'
            )
    return _svg(found.seen, "".join(parts), room)


def _box(found: Explanation, box: np.ndarray, character: str, score: float) -> str:
    height, width = found.seen.shape[:2]
    cx, cy, w, h = box * np.array([width, height, width, height])
    name = f"{html.escape(character)}: {score:.3f}"
    return (
        f'<rect x="{cx - w / 2:.2f}" y="{cy - h / 2:.2f}" width="{w:.2f}" height="{h:.2f}" fill="none" '
        f'stroke="{color_of(score)}" stroke-width=".8"><title>{name}</title></rect>'
    )


# ---- where each character was looked at ----------------------------------------------------------------


def _looks(found: Explanation) -> str:
    if not found.maps:
        if found.boxes or not found.decoded.text:
            return ""
        return '<h2>Where it looked</h2><p class="quiet">This decoder tells nothing about single characters.</p>'
    figures = [
        f"<figure>{_svg_image(heated(found.seen, m))}<figcaption>{html.escape(c)} "
        f'<span class="quiet">{s:.2f}</span></figcaption></figure>'
        for m, c, s in zip(found.maps, characters(found), found.decoded.char_scores)
    ]
    note = f"From {html.escape(found.source)}; bright is much, each picture has its own scale."
    return (
        f'<h2>Where each character was looked at</h2><p class="quiet">{note}</p>'
        f'<div class="small">{"".join(figures)}</div>'
    )


def heated(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The picture in grey, the map over it."""
    height, width = image.shape[:2]
    large = cv2.resize(weights.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR).clip(0, 1)
    colors = cv2.applyColorMap((255 * large).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    share = 0.25 + 0.6 * large[..., None]
    return (grey * (1 - share) + colors * share).astype(np.uint8)


def _svg_image(image: np.ndarray) -> str:
    height, width = image.shape[:2]
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img"><image href="{png(image)}" width="{width}" '
        f'height="{height}"/></svg>'
    )


# ---- sampling points, transform ---------------------------------------------------------------------------


def _sampling(found: Explanation) -> str:
    shown = _one_per_stage(found.points)
    if not shown:
        return ""
    figures = "".join(_dots(found, points) for points in shown)
    note = "Each dot is a place that the module reads; colors are groups of channels. The last module of each stage."
    if any(points.origins is not None for points in shown):
        note += " A line leads back to the position for which it is read."
    return f'<h2>Sampling points</h2><p class="quiet">{note}</p>{figures}'


def _one_per_stage(points: Sequence[Points]) -> list[Points]:
    stages: dict[str, Points] = {}
    for one in points:
        stage = re.search(r"stages?\.\d+|levels?\.\d+", one.module)
        stages[stage.group() if stage else one.module.split(".")[0]] = one
    return list(stages.values())


def _dots(found: Explanation, points: Points) -> str:
    height, width = found.seen.shape[:2]
    scale, parts = np.array([width, height]), []
    groups, queries, each, _ = points.places.shape
    every = max(1, groups * queries * each // 6000)  # beyond that the page is slow and the picture full
    radius = 0.55 if queries * groups < 1500 else 0.35
    for g in range(groups):
        color, path = _GROUPS[g % len(_GROUPS)], []
        for q in range(0, queries, every):
            for x, y in points.places[g, q] * scale:
                if points.origins is not None:
                    ox, oy = points.origins[q] * scale
                    path.append(f"M{ox:.1f} {oy:.1f}L{x:.1f} {y:.1f}")
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{color}"/>')
        if path:
            line = "".join(path)
            parts.insert(0, f'<path d="{line}" stroke="{color}" stroke-width=".25" fill="none" opacity=".6"/>')
    inside = ((points.places >= 0) & (points.places <= 1)).all(-1).mean()
    told = f"{points.module}: {groups} groups, {queries} positions, {100 * (1 - inside):.0f} % outside the picture"
    if points.origins is not None:
        moved = (points.places - points.origins[None, :, None]) * scale
        told += f", moved by {np.sqrt((moved**2).sum(-1)).mean():.1f} px on average"
    picture = _svg(found.seen, "".join(parts), gray=True)
    return f'<figure style="width:100%">{picture}<figcaption>{html.escape(told)}</figcaption></figure>'


def _transform(found: Explanation) -> str:
    if found.grid is None:
        return ""
    height, width = found.image.shape[:2]
    rows = np.linspace(0, len(found.grid) - 1, 9).round().astype(int)
    parts = [
        '<polyline fill="none" stroke="#3cb44b" stroke-width=".4" points="'
        + " ".join(f"{x * width:.1f},{y * height:.1f}" for x, y in found.grid[row, ::2])
        + '"/>'
        for row in rows
    ]
    for x, y in () if found.fiducials is None else found.fiducials:
        parts.append(f'<circle cx="{x * width:.1f}" cy="{y * height:.1f}" r="1" fill="#e6194b"/>')
    note = "The input, and on it the rows of the sampling grid (green) and its control points (red)."
    return f'<h2>Transform</h2><p class="quiet">{note}</p>{_svg(found.image, "".join(parts))}'


class Written(NamedTuple):
    """A page that was written, or why it was not."""

    path: Path | None
    text: str = ""
    error: str = ""


def page_writer(recognizer: Any, folder: str | Path, max_pixels: int = MAX_PIXELS) -> Callable[[Source], Written]:
    """A function that writes the page of a picture into ``folder``: ``000_word.html``, ``001_...``.

    Raises:
        ConfigError: the folder cannot be made; the model does not run in PyTorch.
    """
    directory, numbers = Path(folder), itertools.count()
    recognizer.model  # noqa: B018 - tells at once that an exported file cannot be explained
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f'cannot make "{directory}" ({error.strerror}). Choose another directory.') from error

    def write(source: Source) -> Written:
        number = next(numbers)
        try:
            found = explain(recognizer, source, max_pixels)
        except SampleError as error:
            return Written(None, error=str(error))
        stem = re.sub(r"[^\w.-]+", "_", Path(source.name).stem)[:60]
        file = directory / f"{number:03d}_{stem}.html"
        file.write_text(page(found), encoding="utf-8", errors="replace")
        return Written(file, found.decoded.text)

    return write
