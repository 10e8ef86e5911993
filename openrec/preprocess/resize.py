"""Resizing transforms: names, arguments and geometry of OpenOCR (https://github.com/Topdu/OpenOCR, Apache-2.0).

All of them return a float32 ``[C, H, W]`` image in [-1, 1] (the slices ``[N, C, H, W]``) and add
``valid_ratio``, the share of the width that holds the image, and ``real_ratio``, width / height of
the image rounded and at least 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from openrec.errors import ConfigError
from openrec.preprocess import geometry
from openrec.preprocess.geometry import as_array, bucket, bucket_size, content_width, normalize, pad_width


def _check_shape(shape: Sequence[int], n: int, where: str) -> list[int]:
    values = [int(v) for v in shape] if isinstance(shape, (list, tuple)) else []
    if len(values) != n or min(values) < 1:
        expected = "[channels, height, width]" if n == 3 else "[height, width]"
        raise ConfigError(f"{where}.image_shape: expected {expected} in pixels, got {shape!r}.")
    return values


def _describe(sample: dict[str, Any], image: np.ndarray, content: int, width: int) -> None:
    h, w = image.shape[:2]
    sample["valid_ratio"] = min(1.0, content / width)
    sample["real_ratio"] = max(1, round(w / h))
    if "boxes" in sample:  # (cx, cy, w, h) in parts of the image, which got wider by what was filled in
        sample["boxes"][:, 0::2] *= min(1.0, content / width)


class RecTVResize:
    """Pillow bicubic to one size.

    Args:
        image_shape: ``[height, width]`` px.
        padding: keep the ratio where the image is narrower and fill with zeros on the right.
    """

    def __init__(self, image_shape: Sequence[int] = (32, 128), padding: bool = True) -> None:
        self.height, self.width = _check_shape(image_shape, 2, type(self).__name__)
        self.padding = padding

    keeps_boxes = True  # they move with the image

    resize = staticmethod(geometry.resize_pil)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        image = as_array(sample["image"])
        h, w = image.shape[:2]
        content = content_width(self.width, self.height, w / h) if self.padding else self.width
        sample["image"] = pad_width(normalize(self.resize(image, content, self.height)), self.width)
        _describe(sample, image, content, self.width)
        return sample


class SVTRResize(RecTVResize):
    """OpenCV bilinear to one size; ``image_shape`` is ``[channels, height, width]``."""

    def __init__(self, image_shape: Sequence[int], padding: bool = True) -> None:
        _, height, width = _check_shape(image_shape, 3, type(self).__name__)
        super().__init__((height, width), padding)

    resize = staticmethod(geometry.resize_cv)


class RecDynamicResize:
    """OpenCV bilinear to a fixed height and a width of at least ``image_shape``'s.

    The content is ``ceil(height * ratio)`` wide, the image ``int(height * max(ratio, width0 / height0))``, zeros on
    the right. A batch of different widths is filled with zeros up to the widest by the collate function, so scores
    may depend on the batch; with ``batch_size_per_card: 1`` they do not. As in OpenOCR ``padding`` changes nothing.
    """

    ignored_keys = ("padding",)
    keeps_boxes = True

    def __init__(self, image_shape: Sequence[int] = (32, 128)) -> None:
        self.height, self.width = _check_shape(image_shape, 2, "RecDynamicResize")

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        image = as_array(sample["image"])
        h, w = image.shape[:2]
        width = max(1, int(self.height * max(w / h, self.width / self.height)))
        content = content_width(width, self.height, w / h)
        sample["image"] = pad_width(normalize(geometry.resize_cv(image, content, self.height)), width)
        _describe(sample, image, content, width)
        return sample


class SliceResize:
    """Left, right and middle half of the image, each resized like a ratio bucket: ``[3, C, H, W]``.

    Args:
        image_shape: ``[channels, height, width]``; the size follows from the ratio, channels from the image.
        padding: keep the ratio of narrow halves and fill with zeros on the right; in training the content's width is
            also varied by a factor in [0.5, 1.5), in evaluation it never is.
        max_ratio: largest bucket of a half.
    """

    def __init__(self, image_shape: Sequence[int], padding: bool = True, max_ratio: int = 12) -> None:
        _check_shape(image_shape, 3, "SliceResize")
        self.padding, self.max_ratio = padding, int(max_ratio)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        image = as_array(sample["image"])
        h, w = image.shape[:2]
        half = max(1, w // 2)
        width, height = bucket_size(int(bucket(half / h, 1, self.max_ratio)))
        content = width
        if self.padding:
            stretch = 0.5 + sample["rng"].random() if sample.get("training") else 1.0
            content = content_width(width, height, half / h * stretch)
        starts = (0, w - half, (w - half) // 2)
        parts = [geometry.resize_cv(image[:, s : s + half], content, height) for s in starts]
        sample["image"] = np.stack([pad_width(normalize(p), width) for p in parts])
        _describe(sample, image, content, width)
        return sample


class SliceTVResize:
    """Overlapping windows: ``[m/2 - 1, C, 32, 128]`` for the even ratio ``m = max(6, 2 * (w//h // 2))``.

    The image is resized to ``base_h`` x ``base_h * m`` (Pillow bicubic) and cut into windows ``4 * base_h`` wide,
    one every ``2 * base_h`` px. The number of windows differs between images, so batches hold one image.
    """

    ignored_keys = ("image_shape", "padding", "base_shape", "max_ratio")

    def __init__(self, base_h: int = geometry.BASE_H) -> None:
        self.base_h = int(base_h)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        image = as_array(sample["image"])
        h, w = image.shape[:2]
        width, height = self.base_h * max(6, 2 * ((w // h) // 2)), self.base_h
        whole = normalize(geometry.resize_pil(image, width, height))
        starts = range(0, width - 4 * height + 1, 2 * height)
        sample["image"] = np.stack([whole[:, :, s : s + 4 * height] for s in starts])
        _describe(sample, image, width, width)
        return sample
