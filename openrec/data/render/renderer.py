"""Synthetic scene words: text in, picture with character boxes out.

The idea of layered rendering (ink, bend, perspective, camera) is that of MJSynth (Jaderberg et al.,
arXiv:1406.2227) and SynthTIGER (Yim et al., arXiv:2107.09313); code and parameters are this project's
own, tuned towards crops of incidental scene text.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from openrec.data.render import camera, paint, switches
from openrec.data.render.fonts import Face
from openrec.data.render.fontset import FontSet
from openrec.data.render.geometry import Pose, Warp
from openrec.data.render.layout import EmptyGlyph, Ink, lay_out, size_for
from openrec.data.render.lexicon import default_characters
from openrec.data.render.placement import place
from openrec.data.render.words import LANGUAGES, WordSource
from openrec.errors import ConfigError, SampleError
from openrec.preprocess.decode import decode_rgb

# Strength of the pictures tried until one is legible: each is plainer than the one before.
ATTEMPTS = (1.0, 0.7, 0.4, 0.1)
NEIGHBOUR_SHARE = 0.18  # of the words have a piece of another line in their crop


@dataclass
class RenderedWord:
    """One rendered word.

    Attributes:
        jpeg: the picture as JPEG bytes.
        text: the label: what is written, case kept.
        boxes: float32 ``[len(text), 4]``: left, top, right, bottom of each character in px, clipped to
            the picture.
        font: name of the face.
        size: width and height of the picture in px.
        contrast: luma difference between the weakest letters and their surroundings.
    """

    jpeg: bytes
    text: str
    boxes: np.ndarray
    font: str
    size: tuple[int, int]
    contrast: float

    @property
    def image(self) -> np.ndarray:
        """uint8 RGB ``[H, W, 3]``, decoded from ``jpeg``: what a reader of an LMDB would get."""
        return decode_rgb(self.jpeg)


class WordRenderer:
    """Renders words. Every random choice comes from the generator given to ``render``.

    Args:
        characters: what may be drawn, a string or an ``openrec.charset.Charset``; None for the
            language's own. A case-folded charset is drawn in both cases.
        language: ``en``, ``ko``, ``zh``, or ``random`` for strings of any left-to-right script.
        fonts: see ``openrec.data.render.fonts.find_faces``; None for the system's fonts.
        words: see ``openrec.data.render.words.WordSource``.
        min_length, max_length: characters per text.
        height: range of picture heights in px.
        max_aspect: widest picture, width over height.
        word_split: ``train`` or ``test`` part of all texts, by hash; None: all.
        font_split: ``train`` or ``test`` part of the font families, by hash; None: all.
        strength: 0..1, scales distortion and decay of the picture.
        min_contrast: luma levels (0..255) by which letters stand out from their surroundings.
        random_share: part of texts that are random strings.
        without: parts to leave out, see ``openrec.data.render.switches``.
        rotation: [least, most] degrees by which every word is turned, either way; None: few, and slightly.
        curvature: [least, most] degrees of the arc along which every word bends, either way; None: one word in six.

    Raises:
        ConfigError: no face draws the characters (names a package that does), no text is possible.
    """

    def __init__(
        self,
        characters: Any = None,
        language: str = "en",
        *,
        fonts: str | Path | Sequence[str | Path] | None = None,
        words: str | Path | Sequence[str | Path] | None = None,
        min_length: int = 1,
        max_length: int = 25,
        height: Sequence[int] = (20, 64),
        max_aspect: float = 12.0,
        word_split: str | None = None,
        font_split: str | None = None,
        strength: float = 1.0,
        min_contrast: float = 24.0,
        random_share: float = 0.08,
        rotation: Sequence[float] | None = None,
        curvature: Sequence[float] | None = None,
        without: str | Sequence[str] | None = None,
    ) -> None:
        if language not in LANGUAGES:
            raise ConfigError(f"language: expected one of {', '.join(LANGUAGES)}; got {language!r}.")
        if len(height) != 2 or not 8 <= height[0] <= height[1] <= 256:
            raise ConfigError(f"height: expected [lowest, highest] within 8 to 256 px, got {list(height)}.")
        if not 0 <= strength <= 1:
            raise ConfigError(f"strength: expected a number from 0 to 1, got {strength}.")
        wanted = drawable(characters, language)
        self.without = switches.checked(without)
        self.fonts = FontSet(wanted, language, fonts, font_split, "families" not in self.without)
        possible = [c for c in wanted if c in self.fonts.drawn or c == " "]
        lengths = {"min_length": min_length, "max_length": max_length}
        self.source = WordSource(
            possible,
            language,
            words=words,
            split=word_split,
            random_share=random_share,
            without=self.without,
            **lengths,
        )
        self.cjk = language in ("ko", "zh")
        self.height, self.max_aspect = (int(height[0]), int(height[1])), float(max_aspect)
        self.strength, self.min_contrast = float(strength), float(min_contrast)
        self.pose = Pose.checked(rotation, curvature)

    def summary(self) -> list[str]:
        """Lines for a startup log: fonts and words found, characters that will not occur."""
        return self.fonts.summary() + [f"words from {found}" for found in self.source.found]

    def render(
        self, rng: np.random.Generator, text: str | None = None, *, aspect: tuple[float, float] | None = None
    ) -> RenderedWord:
        """Draw one word.

        Args:
            rng: the same generator state gives the same bytes, in any process.
            text: what to write; None draws a text.
            aspect: the picture's width over height shall lie in this range; None: as the word comes.

        Raises:
            SampleError: ``text`` is empty or holds a character that no font draws.
        """
        if text is not None and not text.strip():
            raise SampleError("text is empty")
        low, high = self.height
        height = round(math.exp(rng.uniform(math.log(low), math.log(high))))
        text, face, ink = self._written(rng, text, height, aspect)
        dense = max(text) >= "\u2e80"  # Han and Hangul need more pixels than letters
        warp, width, height = place(
            rng, ink, height, typical=None if self.cjk else 0.93 * math.sqrt(len(text)),
            aspect=aspect, max_aspect=self.max_aspect, strength=self.strength,
            line_share=0.6 if dense else 0.4, min_line=17 if dense else 9,
            pose=self.pose, without=self.without,
        )  # fmt: skip
        boxes = warp.boxes(ink.boxes)
        picture, contrast = self._photograph(rng, ink, warp, boxes, width, height)
        quality = int(35 + 60 * rng.random() ** 0.6)
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
        jpeg = camera.encode(picture, 95 if "jpeg" in self.without else quality)
        return RenderedWord(jpeg, text, boxes.astype(np.float32), face.name, (width, height), contrast)

    def _written(
        self, rng: np.random.Generator, given: str | None, height: int, aspect: tuple[float, float] | None
    ) -> tuple[str, Face, Ink]:
        for _ in range(50):
            text = given if given is not None else self.source.draw(rng, self._lengths(aspect))
            try:
                face = self.fonts.pick(rng, text)
                return text, face, self._ink(rng, face, text, height)
            except EmptyGlyph:
                continue  # the face maps a character to nothing
            except SampleError:
                if given is not None:
                    raise
        if given is not None:
            raise SampleError(f"no font draws all of {given!r}")
        raise ConfigError("fonts: 50 texts in a row had no font with all their characters; add fonts.")

    def _lengths(self, aspect: tuple[float, float] | None) -> tuple[int, int] | None:
        """Text lengths that fill a picture of such a shape without cramming."""
        if aspect is None:
            return None
        low, high = (0.8, 1.4) if self.cjk else (1.2, 3.0)
        return max(1, round(aspect[0] * low)), max(1, round(aspect[1] * high))

    def _ink(self, rng: np.random.Generator, face: Face, text: str, height: int) -> Ink:
        size = size_for(height * (0.9 if self.cjk else 1.2))
        kind = rng.random()
        spacing = 0.0 if kind < 0.6 else rng.uniform(-0.03, 0.05) if kind < 0.85 else rng.uniform(0.05, 0.25)
        ink = lay_out(face, text, size, spacing, pad=size // 4)
        thin = ink.stroke < 0.055 * size  # hairlines would vanish in the camera
        if not self.cjk and (thin or rng.random() < 0.08):
            ink.mask = cv2.dilate(ink.mask, np.ones((2, 2), np.uint8))
            ink.stroke += 1
        if rng.random() < NEIGHBOUR_SHARE * self.strength and "neighbours" not in self.without:
            other = self.source.draw(rng)
            if face.covers(other):
                gap = int(rng.uniform(0.05, 0.35) * size)
                shift = int(rng.integers(-size, size))
                with contextlib.suppress(EmptyGlyph):  # no neighbour, then
                    ink = ink.with_line(lay_out(face, other, size, pad=ink.pad), gap, shift, bool(rng.random() < 0.5))
        return ink

    def _photograph(
        self, rng: np.random.Generator, ink: Ink, warp: Warp, boxes: np.ndarray, width: int, height: int
    ) -> tuple[np.ndarray, float]:
        """uint8 RGB picture and the contrast of its weakest letters."""
        decorated = 0.0 if "decoration" in self.without else self.strength
        planes = [*paint.decorate(rng, ink.mask, ink.stroke, decorated), ink.mask]
        shrink = math.sqrt(abs(np.linalg.det(warp.matrix[:2, :2])))
        seen = _seen(warp, planes, width, height, shrink)
        sharp = seen[..., -1].astype(np.float32)
        stroke = max(0.6, ink.stroke * shrink)
        inked = boxes[ink.boxes[:, 2] > ink.boxes[:, 0]]
        for mild in ATTEMPTS:
            layers = seen if mild > 0.5 else seen[..., -1:]
            shot = self._shot(rng, layers, sharp, stroke, boxes, mild * self.strength)
            judged = camera.judge(shot, sharp, inked)
            if judged.ok(self.min_contrast):
                break
        return cv2.convertScaleAbs(np.maximum(shot[..., :3], np.float32(0))), judged.contrast

    def _shot(
        self,
        rng: np.random.Generator,
        layers: np.ndarray,
        sharp: np.ndarray,
        stroke: float,
        boxes: np.ndarray,
        mild: float,
    ) -> np.ndarray:
        height, width = sharp.shape
        contrast = float(np.clip(rng.lognormal(math.log(105), 0.5), 35 + 60 * (1 - mild), 235))
        contrast = max(contrast, 100.0) if "low_contrast" in self.without else contrast
        rough = 0.0 if "texture" in self.without else mild * contrast
        base, text, sign = paint.colours(rng, contrast)
        ground = paint.background(rng, height, width, base, rough * 0.30 * rng.random() ** 1.5)
        if rng.random() < 0.15 * mild and "texture" not in self.without:
            paint.border(rng, ground, np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)]))
        picture = paint.compose(rng, ground, layers, text, sign, rough * 0.25 * rng.random())
        return camera.shoot(rng, np.dstack([picture, sharp]), stroke, mild, self.without)


def drawable(characters: Any, language: str) -> list[str]:
    """The single characters to draw for a charset object, a string or a list; both cases where it folds case."""
    if characters is None:
        return list(default_characters(language))
    members = [str(c) for c in getattr(characters, "characters", characters)]
    if getattr(characters, "lower", False):
        members += [c.upper() for c in members if len(c.upper()) == 1]
    return [c for c in dict.fromkeys(members) if len(c) == 1]


def _seen(warp: Warp, planes: list[np.ndarray], width: int, height: int, shrink: float) -> np.ndarray:
    """The planes in the picture, uint8 ``[height, width, n]``."""
    flat = np.dstack(planes) if len(planes) > 1 else planes[0]
    if shrink < 0.65:  # bilinear sampling would skip pixels
        side = round(1 / shrink)
        flat = cv2.blur(flat, (side, side))
    seen = warp.remap(flat, width, height)
    return seen[..., None] if seen.ndim == 2 else seen
