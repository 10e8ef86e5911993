"""What a camera does to a word: light, blur, few pixels, noise, JPEG. And whether one can still read it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

_ZERO, _ONE = np.float32(0), np.float32(1)


@lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """Unit Gaussian noise, float32 ``[256, 640, 3]``, from a fixed seed; pieces of it are used."""
    return np.random.default_rng(20262).standard_normal((256, 640, 3)).astype(np.float32)


def shoot(
    rng: np.random.Generator, picture: np.ndarray, stroke: float, mild: float, without: frozenset[str] = frozenset()
) -> np.ndarray:
    """Photograph ``picture``.

    Args:
        picture: float32 ``[H, W, 4]``: RGB in 0..255 and, as the fourth channel, the ink; every blur
            also softens the ink, so that what is left of it can be judged.
        stroke: stroke width in px; blur is measured in strokes.
        mild: 1 for ordinary strength, 0 for none.
        without: see ``openrec.data.render.switches``.

    Returns:
        float32 ``[H, W, 4]``.
    """
    h, w = picture.shape[:2]
    light, blur, motion, small, noise, tone = rng.random(6)
    if light < 0.35 and "light" not in without:
        picture[..., :3] *= _light(rng, h, w, 0.35 * mild)[..., None]
    sigma = stroke * mild * (0.10 + 0.50 * rng.random() ** 1.5) if blur < 0.85 else 0.0
    if sigma > 0.25 and "blur" not in without:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    if motion < 0.10 * mild and "blur" not in without:
        picture = _motion(rng, picture, stroke * (0.6 + 0.8 * rng.random()))
    if small < 0.35 * mild and "low_resolution" not in without:
        # No stroke may become thinner than about 0.9 px.
        factor = max(rng.uniform(0.35, 0.9), min(1.0, 0.9 / stroke), min(1.0, 12 / h))
        if factor < 0.95:
            few = cv2.resize(
                picture, (max(4, round(w * factor)), max(4, round(h * factor))), interpolation=cv2.INTER_AREA
            )
            picture = cv2.resize(few, (w, h), interpolation=(cv2.INTER_LINEAR, cv2.INTER_CUBIC)[int(rng.integers(2))])
    if noise < 0.6 and "noise" not in without:
        grain, gh, gw = _grain(), 256, 640
        strength = np.float32(7 * mild * rng.random() ** 2)
        if h <= gh and w <= gw:
            y, x = int(rng.integers(gh - h + 1)), int(rng.integers(gw - w + 1))
            picture[..., :3] += grain[y : y + h, x : x + w] * strength
    if tone < 0.15:  # over-sharpening, as phones do
        picture[..., :3] += np.float32(0.8 * mild) * (
            picture[..., :3] - cv2.GaussianBlur(picture[..., :3], (0, 0), 1.2)
        )
    return picture


def _light(rng: np.random.Generator, h: int, w: int, strength: float) -> np.ndarray:
    """A soft pool of light, float32 ``[h, w]`` around 1."""
    cx, cy, size = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(0.7, 2.0)
    x = (np.linspace(-1, 1, w, dtype=np.float32) - np.float32(cx)) ** 2
    y = (np.linspace(-1, 1, h, dtype=np.float32) - np.float32(cy)) ** 2
    return 1 + np.float32(strength) * (np.exp((x[None, :] + y[:, None]) * np.float32(-0.5 / size**2)) * 2 - 1)


def _motion(rng: np.random.Generator, picture: np.ndarray, length: float) -> np.ndarray:
    if length < 1.2:
        return picture
    angle = rng.uniform(0, math.pi)
    n = int(length) | 1
    kernel = np.zeros((n + 2, n + 2), np.float32)
    middle = (n + 1) // 2
    dx, dy = math.cos(angle) * length / 2, math.sin(angle) * length / 2
    start, end = ((round((middle + s * dx) * 16), round((middle + s * dy) * 16)) for s in (-1, 1))
    cv2.line(kernel, start, end, 1.0, 1, cv2.LINE_8, 4)  # coordinates in 1/16 px
    return cv2.filter2D(picture, -1, kernel / max(kernel.sum(), 1.0))


@dataclass
class Legibility:
    """How well the weakest characters of a word stand out, after the camera.

    Attributes:
        contrast: luma difference between ink and its surroundings, the second lowest over characters.
        clarity: that difference over the spread inside ink and surroundings.
        detail: share of the ink's variation that blur has left.
    """

    contrast: float
    clarity: float
    detail: float

    def ok(self, min_contrast: float) -> bool:
        return self.contrast >= min_contrast and self.clarity >= 1.4 and self.detail >= 0.5


def judge(picture: np.ndarray, sharp: np.ndarray, boxes: np.ndarray) -> Legibility:
    """Measure a photographed word.

    Args:
        picture: float32 ``[H, W, 4]`` from ``shoot``.
        sharp: float32 ``[H, W]``, the ink (0..255) before the camera.
        boxes: ``[n, 4]`` of the characters that have ink.
    """
    luma = cv2.cvtColor(picture, cv2.COLOR_RGBA2GRAY)
    luma = np.minimum(np.maximum(luma, _ZERO), np.float32(255))
    soft = picture[..., 3]
    ink = np.minimum(np.maximum(soft * np.float32(1 / 255), _ZERO), _ONE)
    near = np.minimum(cv2.blur(ink, (7, 7)) * np.float32(4), _ONE)
    around = near * (_ONE - np.minimum(ink * np.float32(2), _ONE))
    ink = ink * ink
    ink_luma, around_luma = ink * luma, around * luma
    maps = cv2.merge([ink, ink_luma, ink_luma * luma, around, around_luma, around_luma * luma])
    # Sums over columns, then over each character's columns.
    columns = cv2.reduce(maps, 0, cv2.REDUCE_SUM, dtype=cv2.CV_64F)[0]
    total = np.zeros((columns.shape[0] + 1, 6))
    np.cumsum(columns, 0, out=total[1:])
    width = luma.shape[1]
    left = np.minimum(np.maximum(boxes[:, 0].astype(int), 0), width - 1)
    right = np.minimum(np.maximum(np.ceil(boxes[:, 2]).astype(int), left + 1), width)
    n1, s1, q1, n0, s0, q0 = (total[right] - total[left]).T
    n1, n0 = np.maximum(n1, 1e-3), np.maximum(n0, 1e-3)
    difference = np.abs(s1 / n1 - s0 / n0)
    spread = np.sqrt(np.maximum((q1 / n1 - (s1 / n1) ** 2 + q0 / n0 - (s0 / n0) ** 2) / 2, 0)) + 1
    weakest = min(1, len(difference) - 1)  # a dot or a comma may be lost
    detail = _std(soft) / max(_std(sharp), 1e-3)
    return Legibility(float(np.sort(difference)[weakest]), float(np.sort(difference / spread)[weakest]), detail)


def _std(image: np.ndarray) -> float:
    return float(cv2.meanStdDev(image)[1][0, 0])


def encode(picture: np.ndarray, quality: int) -> bytes:
    """JPEG bytes of an RGB picture (uint8 ``[H, W, 3]``)."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"OpenCV could not encode a JPEG of shape {picture.shape}")
    return data.tobytes()
