"""From text to ink: glyph masks side by side, and where each character lies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from openrec.data.render import fonts

SIZES = (64, 128, 256)  # px per em; few sizes, so that the caches hit


@dataclass(frozen=True)
class Glyph:
    """One character: its ink relative to the pen, in pixels."""

    ink: np.ndarray  # uint8 [h, w]
    left: int
    top: int  # above the baseline: negative
    advance: float


class EmptyGlyph(Exception):
    """The face has a glyph for the character, and nothing in it."""


@dataclass
class Ink:
    """A line of text, not yet bent or painted.

    Attributes:
        mask: uint8 ``[H, W]``, with ``pad`` empty pixels on every side.
        boxes: float32 ``[n, 4]`` left, top, right, bottom of each character's ink in ``mask``; a space
            has a box of the height of the line.
        pad: px.
        stroke: mean stroke width in px.
    """

    mask: np.ndarray
    boxes: np.ndarray
    pad: int
    stroke: float

    def with_line(self, other: Ink, gap: int, shift: int, below: bool) -> Ink:
        """This text with ``other`` written ``gap`` px above or below it; boxes stay those of this text."""
        height, width = self.mask.shape
        body = other.mask[other.pad : -other.pad]
        body = body[:, max(0, -shift) : max(0, -shift) + max(0, width - max(0, shift))]
        start = max(0, shift)
        room = body.shape[0] + self.pad
        mask = np.zeros((height + room, width), np.uint8)
        mask[0 if below else room :][:height] = self.mask
        top = height - self.pad + gap if below else room + self.pad - gap - body.shape[0]
        top = max(0, min(top, mask.shape[0] - body.shape[0]))
        view = mask[top : top + body.shape[0], start : start + body.shape[1]]
        np.maximum(view, body, out=view)
        boxes = self.boxes if below else self.boxes + np.array([0, room, 0, room], np.float32)
        return Ink(mask, boxes, self.pad, self.stroke)


def size_for(height: float) -> int:
    """The smallest prepared size that needs no enlarging by more than a quarter to ``height`` px per em."""
    return next((size for size in SIZES if 1.25 * size >= height), SIZES[-1])


@lru_cache(maxsize=32768)
def glyph(path: str, index: int, size: int, character: str) -> Glyph:
    font = fonts.load(path, index, size)
    ink, (left, top) = fonts.draw(font, character)
    x, y, w, h = cv2.boundingRect(ink) if ink.size else (0, 0, 0, 0)  # FreeType's box may have an empty edge
    return Glyph(ink[y : y + h, x : x + w], left + x, top + y, float(font.getlength(character)))


def lay_out(face: fonts.Face, text: str, size: int, spacing: float = 0.0, pad: int = 12) -> Ink:
    """Draw ``text`` in one row.

    Args:
        size: px per em, one of ``SIZES``.
        spacing: extra advance after each character, in em.

    Raises:
        EmptyGlyph: a character other than the space has no ink.
    """
    glyphs = [glyph(face.path, face.index, size, c) for c in text]
    pens, pen = [], 0.0
    for g in glyphs:
        pens.append(round(pen) + g.left)
        pen += max(g.advance + spacing * size, 1.0)
    empty = [c for c, g in zip(text, glyphs, strict=True) if not g.ink.size and c != " "]
    if empty:
        raise EmptyGlyph(f"{face.name} draws nothing for {empty}")
    drawn = [(x, g) for x, g in zip(pens, glyphs, strict=True) if g.ink.size]
    left, right = min(x for x, _ in drawn), max(x + g.ink.shape[1] for x, g in drawn)
    top, bottom = min(g.top for _, g in drawn), max(g.top + g.ink.shape[0] for _, g in drawn)
    mask = np.zeros((bottom - top + 2 * pad, right - left + 2 * pad), np.uint8)
    boxes = np.empty((len(text), 4), np.float32)
    for i, (x, g) in enumerate(zip(pens, glyphs, strict=True)):
        x0, y0 = x - left + pad, g.top - top + pad
        h, w = g.ink.shape
        if g.ink.size:
            view = mask[y0 : y0 + h, x0 : x0 + w]
            np.maximum(view, g.ink, out=view)
            boxes[i] = x0, y0, x0 + w, y0 + h
        else:
            boxes[i] = x0, pad, x0 + max(g.advance, 1.0), mask.shape[0] - pad
    return Ink(mask, boxes, pad, _stroke_width(mask))


def _stroke_width(mask: np.ndarray) -> float:
    # Ink area over half its outline: right for long bars, near enough for letters.
    area = cv2.sumElems(mask)[0] / 255
    across = cv2.absdiff(mask[:, 1:], mask[:, :-1])
    down = cv2.absdiff(mask[1:], mask[:-1])
    outline = (cv2.sumElems(across)[0] + cv2.sumElems(down)[0]) / 255 * 0.785
    return float(2 * area / max(outline, 1.0))
