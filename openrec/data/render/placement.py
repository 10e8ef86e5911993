"""Where the word lies in its picture: margins, squeeze, crop size."""

from __future__ import annotations

import math

import numpy as np

from openrec.data.render.geometry import Pose, Warp, draw_warp
from openrec.data.render.layout import Ink

NARROWEST, WIDEST = 0.45, 1.4  # horizontal scale of the letters


def place(
    rng: np.random.Generator,
    ink: Ink,
    height: int,
    *,
    typical: float | None,
    aspect: tuple[float, float] | None,
    max_aspect: float,
    strength: float,
    line_share: float = 0.4,
    min_line: float = 9.0,
    pose: Pose | None = None,
    without: frozenset[str] = frozenset(),
) -> tuple[Warp, int, int]:
    """A random warp that brings ``ink`` into a picture.

    Args:
        height: of the picture, px.
        typical: width over height that a crop of such a text has in the street; None: that of the
            letters.
        aspect: range in which the picture's width over height shall lie; None: no matter.
        max_aspect: upper bound of it in any case.
        line_share: least height of the straight line in that of the bent and turned one.
        min_line: least height of the line in the picture, px; the picture grows to make room for it.
        pose: rotation and bend on purpose; the line may then be as low as they make it.
        without: see ``openrec.data.render.switches``.

    Returns:
        The warp, the picture's width and its height in px.
    """
    x0, y0 = ink.boxes[:, :2].min(0)
    x1, y1 = ink.boxes[:, 2:].max(0)
    half = (float(x1 - x0) / 2, float(y1 - y0) / 2)
    centre = (float(x0) + half[0], float(y0) + half[1])
    for calm in (1.0, 0.6, 0.3, 0.0):  # a long word that turns or bends leaves few pixels for its letters
        warp = draw_warp(rng, centre, half, strength * calm, pose, without)
        around = warp.boxes(ink.boxes)
        left, top = around[:, :2].min(0)
        right, bottom = around[:, 2:].max(0)
        text_w, text_h = float(right - left), float(bottom - top)
        if pose or 2 * half[1] >= line_share * text_h:
            break
    line = max(2 * half[1], 0.35 * text_h)
    margins = line * (0.02 + 0.22 * rng.random(4) ** 1.3)  # left, top, right, bottom
    squeeze = 1.0
    if typical is not None and strength > 0:
        natural = _width(text_w, margins) / _height(text_h, margins)
        drawn = typical * math.exp(0.33 * rng.standard_normal())
        squeeze = float(np.clip((drawn / natural) ** (0.8 * strength), NARROWEST, WIDEST))
    if aspect is not None:
        squeeze, margins = _fit(rng, aspect, margins, text_w, text_h)
    height = max(height, math.ceil(min_line * _height(text_h, margins) / (2 * half[1])))
    scale = height / _height(text_h, margins)
    width = max(8, round(_width(text_w, margins) * squeeze * scale))
    widest = int(max_aspect * height)
    if width > widest:
        squeeze, width = squeeze * widest / width, widest
    across = squeeze * scale
    return warp.then(across, scale, (margins[0] - left) * across, (margins[1] - top) * scale), width, height


def _width(text: float, margins: np.ndarray) -> float:
    return text + float(margins[0] + margins[2])


def _height(text: float, margins: np.ndarray) -> float:
    return text + float(margins[1] + margins[3])


def _fit(
    rng: np.random.Generator, aspect: tuple[float, float], margins: np.ndarray, text_w: float, text_h: float
) -> tuple[float, np.ndarray]:
    """Squeeze and margins for a picture within ``aspect``: the letters give way first, then the margins."""
    target, share = rng.uniform(*aspect), rng.random()
    full_w, full_h = _width(text_w, margins), _height(text_h, margins)
    squeeze = float(np.clip(target * full_h / full_w, NARROWEST, WIDEST))
    missing_w = target * full_h / squeeze - full_w
    missing_h = full_w * squeeze / target - full_h
    if missing_w > 0:
        margins = margins + np.array([missing_w * share, 0, missing_w * (1 - share), 0])
    elif missing_h > 0:
        margins = margins + np.array([0, missing_h * share, 0, missing_h * (1 - share)])
    return squeeze, margins
