"""RandAugment for word images with the operations and magnitudes of PARSeq.

Bautista and Atienza, "Scene Text Recognition with Permuted Autoregressive Sequence Models", ECCV
2022 (https://github.com/baudm/parseq, Apache-2.0), in the form OpenOCR uses: sixteen operations, of
which three different ones are drawn per image and each is applied with probability one half, always
at magnitude 5 of 10. Written anew on OpenCV and NumPy; Pillow defines what each operation means.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from openrec.preprocess.geometry import as_array

GREY = (128, 128, 128)  # fill colour outside a warped image
DRAWS, PROBABILITY = 3, 0.5

ROTATE_DEGREES = 15.0
SHEAR_X, SHEAR_Y = 0.45, 0.10
TRANSLATE_X, TRANSLATE_Y = 0.05, 0.15  # of the width, of the height
ENHANCE = 0.45  # factor 1 - 0.45 or 1 + 0.45
POSTERIZE_BITS, SOLARIZE_THRESHOLD, SOLARIZE_ADD = 2, 128, 55

_LEVELS = np.arange(256, dtype=np.uint8)
_INVERT = 255 - _LEVELS
_POSTERIZE = _LEVELS & np.uint8(256 - (1 << (8 - POSTERIZE_BITS)))
_SOLARIZE = np.where(_LEVELS < SOLARIZE_THRESHOLD, _LEVELS, _INVERT)
_SOLARIZE_ADD = np.where(
    _LEVELS < SOLARIZE_THRESHOLD, np.minimum(255, _LEVELS.astype(np.int32) + SOLARIZE_ADD), _LEVELS
).astype(np.uint8)

# Every operation takes the image, two uniform numbers in [0, 1) and the sample's generator (for
# operations that need more numbers), and returns a uint8 image [H, W, 3].
Operation = Callable[[np.ndarray, float, float, np.random.Generator], np.ndarray]


def _sign(u: float) -> float:
    return 1.0 if u < 0.5 else -1.0


def _warp(image: np.ndarray, inverse: list[list[float]], size: tuple[int, int], u: float) -> np.ndarray:
    """Warp with the output-to-input matrix in Pillow's convention (pixel centres at .5)."""
    (a, b, c), (d, e, f) = inverse
    centred = np.array([[a, b, c + (a + b - 1) / 2], [d, e, f + (d + e - 1) / 2]])
    flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_LINEAR if u < 0.5 else cv2.INTER_CUBIC)
    return cv2.warpAffine(image, centred, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=GREY)


def auto_contrast(image: np.ndarray, u: float, v: float, rng: np.random.Generator) -> np.ndarray:
    """Stretch every channel to 0..255."""
    flat = image.reshape(-1, 3)
    low = cv2.reduce(flat, 0, cv2.REDUCE_MIN)[0].astype(np.float64)
    span = cv2.reduce(flat, 0, cv2.REDUCE_MAX)[0] - low
    scale = np.divide(255.0, span, out=np.ones(3), where=span > 0)
    offset = np.where(span > 0, -low * scale, 0.0)
    table = np.clip(np.arange(256.0)[:, None] * scale + offset, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[None])


def equalize(image: np.ndarray, u: float, v: float, rng: np.random.Generator) -> np.ndarray:
    """Flatten every channel's histogram."""
    table = np.empty((1, 256, 3), np.uint8)
    for channel in range(3):
        histogram = np.bincount(image[..., channel].ravel(), minlength=256)
        used = np.flatnonzero(histogram)
        step = (int(histogram.sum()) - int(histogram[used[-1]])) // 255
        if len(used) <= 1 or not step:
            table[0, :, channel] = _LEVELS
        else:
            before = step // 2 + np.cumsum(histogram) - histogram
            table[0, :, channel] = np.minimum(before // step, 255)
    return cv2.LUT(image, table)


def _lookup(table: np.ndarray) -> Operation:
    return lambda image, u, v, rng: cv2.LUT(image, table)


def _blend(image: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
    return cv2.addWeighted(image, factor, other, 1.0 - factor, 0.0)


def color(image: np.ndarray, u: float, v: float, rng: np.random.Generator) -> np.ndarray:
    """Less or more saturated: blend with, or away from, the grey image."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return _blend(image, grey, 1.0 + ENHANCE * _sign(u))


def contrast(image: np.ndarray, u: float, v: float, rng: np.random.Generator) -> np.ndarray:
    """Blend with, or away from, the mean grey level."""
    factor = 1.0 + ENHANCE * _sign(u)
    mean = int(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] + 0.5)
    return cv2.LUT(image, np.clip(np.arange(256) * factor + mean * (1.0 - factor), 0, 255).astype(np.uint8))


def brightness(image: np.ndarray, u: float, v: float, rng: np.random.Generator) -> np.ndarray:
    """Darker or lighter by the factor."""
    return cv2.LUT(image, np.clip(np.arange(256) * (1.0 + ENHANCE * _sign(u)), 0, 255).astype(np.uint8))


def rotate(image: np.ndarray, u: float, v: float, rng: np.random.Generator) -> np.ndarray:
    """By 15 degrees either way; the canvas grows so that nothing is cut off."""
    h, w = image.shape[:2]
    angle = math.radians(-ROTATE_DEGREES * _sign(u))
    cos, sin = math.cos(angle), math.sin(angle)
    across, down = w * cos + h * abs(sin), w * abs(sin) + h * cos
    width = math.ceil((w + across) / 2) - math.floor((w - across) / 2)  # as Pillow rounds
    height = math.ceil((h + down) / 2) - math.floor((h - down) / 2)
    inverse = [  # clockwise for a positive angle
        [cos, sin, w / 2 - (cos * width + sin * height) / 2],
        [-sin, cos, h / 2 - (-sin * width + cos * height) / 2],
    ]
    return _warp(image, inverse, (width, height), v)


def shear_x(image: np.ndarray, u: float, v: float, rng: np.random.Generator) -> np.ndarray:
    h, w = image.shape[:2]
    return _warp(image, [[1, SHEAR_X * _sign(u), 0], [0, 1, 0]], (w, h), v)


def shear_y(image: np.ndarray, u: float, v: float, rng: np.random.Generator) -> np.ndarray:
    h, w = image.shape[:2]
    return _warp(image, [[1, 0, 0], [SHEAR_Y * _sign(u), 1, 0]], (w, h), v)


def translate_x(image: np.ndarray, u: float, v: float, rng: np.random.Generator) -> np.ndarray:
    h, w = image.shape[:2]
    return _warp(image, [[1, 0, TRANSLATE_X * _sign(u) * w], [0, 1, 0]], (w, h), v)


def translate_y(image: np.ndarray, u: float, v: float, rng: np.random.Generator) -> np.ndarray:
    h, w = image.shape[:2]
    return _warp(image, [[1, 0, 0], [0, 1, TRANSLATE_Y * _sign(u) * h]], (w, h), v)


def gaussian_blur(image: np.ndarray, u: float, v: float, rng: np.random.Generator) -> np.ndarray:
    """Standard deviation 1 or 2 px, by the longer side."""
    radius = round(min(2.0, max(1.0, 0.02 * max(image.shape[:2]))))
    side = 6 * radius + 1
    return cv2.GaussianBlur(image, (side, side), radius, borderType=cv2.BORDER_REPLICATE)


@lru_cache(maxsize=32)
def _poisson_table(rate: int) -> np.ndarray:
    """int16 [65536]: signed Poisson values by a 16-bit uniform number (the top bit is the sign)."""
    k = np.arange(4 * rate + 40)
    log_p = k * math.log(rate) - rate - np.array([math.lgamma(i + 1) for i in k])
    values = np.searchsorted(np.cumsum(np.exp(log_p)), (np.arange(32768) + 0.5) / 32768).astype(np.int16)
    return np.concatenate([values, -values])


def poisson_noise(image: np.ndarray, u: float, v: float, rng: np.random.Generator) -> np.ndarray:
    """Add Poisson noise of random sign, the same in the three channels."""
    h, w = image.shape[:2]
    rate = round(min(20.0, max(1.0, 0.2 * max(h, w)))) | 1
    noise = _poisson_table(rate)[np.frombuffer(rng.bytes(2 * h * w), np.uint16)].reshape(h, w)
    return cv2.add(image, cv2.merge((noise, noise, noise)), dtype=cv2.CV_8U)


OPERATIONS: tuple[Operation, ...] = (
    auto_contrast,
    equalize,
    _lookup(_INVERT),
    rotate,
    _lookup(_POSTERIZE),
    _lookup(_SOLARIZE),
    _lookup(_SOLARIZE_ADD),
    color,
    contrast,
    brightness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    gaussian_blur,
    poisson_noise,
)


class PARSeqAug:
    """Three random operations out of ``OPERATIONS``, each applied with probability one half.

    Takes and returns a uint8 image: ``[H, W, 3]`` (or ``[H, W]``, which stays grey). Rotation enlarges the image.
    """

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        rng = sample["rng"]
        draws = rng.random(4 * DRAWS).tolist()  # one call: a call costs more than the numbers
        chosen = _distinct(draws[:DRAWS])
        image: np.ndarray | None = None
        grey = False
        for i, number in enumerate(chosen):
            keep, u, v = draws[DRAWS + 3 * i : DRAWS + 3 * i + 3]
            if keep < PROBABILITY:
                if image is None:
                    image, grey = _three_channels(as_array(sample["image"]))
                image = OPERATIONS[number](image, u, v, rng)
        if image is not None:
            sample["image"] = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if grey else image
        return sample


class PARSeqAugPIL(PARSeqAug):
    """The same; the name that configs use after ``DecodeImagePIL``."""


def _three_channels(image: np.ndarray) -> tuple[np.ndarray, bool]:
    grey = image.ndim == 2
    return (cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if grey else image), grey


def _distinct(draws: list[float]) -> list[int]:
    """Different operation numbers, uniformly: the i-th draw picks among those that are left."""
    left = list(range(len(OPERATIONS)))
    return [left.pop(int(u * len(left))) for u in draws]
