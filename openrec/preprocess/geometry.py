"""Target sizes and resizing that several transforms and data sets share.

The ratio buckets and their sizes are those of OpenOCR (https://github.com/Topdu/OpenOCR,
Apache-2.0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from openrec.errors import ConfigError

BASE_SHAPE = ((64, 64), (96, 48), (112, 40), (128, 32))  # (width, height) px for ratio 1, 2, 3, 4
BASE_H = 32


def check_base_shape(base_shape: Sequence[Sequence[int]] | None, where: str) -> list[tuple[int, int]]:
    """``base_shape`` as tuples.

    Raises:
        ConfigError: not four positive (width, height) pairs.
    """
    shapes = BASE_SHAPE if base_shape is None else base_shape
    try:
        pairs = [(int(w), int(h)) for w, h in shapes]
    except (TypeError, ValueError):
        pairs = []
    if len(pairs) != 4 or any(w < 1 or h < 1 for w, h in pairs):
        raise ConfigError(f"{where}.base_shape: expected four [width, height] pairs, got {base_shape!r}.")
    return pairs


def bucket(ratio: Any, min_ratio: int = 1, max_ratio: int = 10) -> Any:
    """Ratio bucket(s) of width / height: rounded half to even, then clipped. Training, evaluation and inference
    all use this one function."""
    return np.clip(np.rint(ratio), min_ratio, max_ratio).astype(np.int64)


def bucket_size(q: int, base_shape: Sequence[tuple[int, int]] = BASE_SHAPE, base_h: int = BASE_H) -> tuple[int, int]:
    """``(width, height)`` px that images of ratio bucket ``q`` are resized to."""
    return base_shape[q - 1] if q <= len(base_shape) else (base_h * q, base_h)


def as_array(image: Any) -> np.ndarray:
    """A uint8 array of an array or a Pillow image."""
    return image if isinstance(image, np.ndarray) else np.asarray(image)


def resize_pil(image: Any, width: int, height: int) -> np.ndarray:
    """Pillow's anti-aliased bicubic resize to exactly ``height`` x ``width``; uint8 in, uint8 out."""
    image = as_array(image)
    if image.shape[:2] == (height, width):
        return image  # Pillow too returns a copy here
    if not image.flags.c_contiguous:
        image = np.ascontiguousarray(image)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def resize_cv(image: Any, width: int, height: int) -> np.ndarray:
    """OpenCV's bilinear resize to exactly ``height`` x ``width``."""
    return cv2.resize(as_array(image), (width, height))


# The 256 values of (v / 255 - 0.5) / 0.5, computed in float32 in that order.
NORMALIZED = ((np.arange(256, dtype=np.float32) / np.float32(255)) - np.float32(0.5)) / np.float32(0.5)


def normalize(image: np.ndarray) -> np.ndarray:
    """uint8 ``[H, W, 3]`` or ``[H, W]`` -> float32 ``[C, H, W]`` in [-1, 1]."""
    values = NORMALIZED[image]
    return np.ascontiguousarray(values.transpose(2, 0, 1)) if image.ndim == 3 else values[None]


def pad_width(image: np.ndarray, width: int, left: bool = False) -> np.ndarray:
    """Zeros beside a normalised ``[C, H, w]`` image up to ``width``: on the right, or on the left."""
    c, h, w = image.shape
    if w >= width:
        return image
    out = np.zeros((c, h, width), np.float32)
    if left:
        out[:, :, width - w :] = image
    else:
        out[:, :, :w] = image
    return out


def content_width(width: int, height: int, ratio: float) -> int:
    """Width at ``height`` that keeps ``ratio``, at least 1 and at most ``width``."""
    return max(1, min(width, math.ceil(height * ratio)))
