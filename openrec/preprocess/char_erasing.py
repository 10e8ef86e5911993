"""Erasing strips and spots, so that a recogniser learns to guess what it cannot see from what it can.

Baena et al., "General Detection-based Text Line Recognition" (DTLR), NeurIPS 2024, after random erasing (Zhong et al.,
AAAI 2020): some erased rectangles are as high as the picture and hide most of a character, others are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import numpy as np

from openrec.errors import ConfigError


class CharErasing:
    """Paint grey rectangles over a picture, uint8 ``[H, W, C]`` or normalised ``[C, H, W]``; in training only.

    Args:
        strips, spots: rectangles tried, over the full height and small ones.
        p: probability of each.
        strip_area, spot_area: [least, most] share of the picture.
        strip_aspect, spot_aspect: [least, most] height over width.

    Area and aspect give width and height; a strip is then stretched to the full height, which it has already on a
    long line of text.

    Boxes of the characters stay: what is hidden is still there to be read.
    """

    keeps_boxes = True

    def __init__(
        self,
        strips: int = 5,
        spots: int = 4,
        p: float = 0.5,
        strip_area: Sequence[float] = (0.02, 0.05),
        spot_area: Sequence[float] = (0.01, 0.02),
        strip_aspect: Sequence[float] = (3.0, 6.0),
        spot_aspect: Sequence[float] = (0.3, 3.3),
    ) -> None:
        for name, pair, most in (
            ("strip_area", strip_area, 1.0), ("spot_area", spot_area, 1.0),
            ("strip_aspect", strip_aspect, inf), ("spot_aspect", spot_aspect, inf),
        ):  # fmt: skip
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
                raise ConfigError(f"CharErasing.{name}: expected [least, most] above 0, shares at most 1; got {pair}.")
        if not 0 <= p <= 1:
            raise ConfigError(f"CharErasing.p: expected a probability, got {p}.")
        self.strips, self.spots, self.p = int(strips), int(spots), float(p)
        self.strip, self.spot = (strip_area, strip_aspect), (spot_area, spot_aspect)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        if not sample.get("training", True):
            return sample
        image, rng = np.array(sample["image"]), sample["rng"]
        planes = image.transpose(1, 2, 0) if image.dtype == np.float32 else image  # [H, W, C], a view
        height, width = planes.shape[:2]
        for number in range(self.strips + self.spots):
            keep, share, ratio, left, top, grey = rng.random(6)
            if keep >= self.p:
                continue
            full = number < self.strips
            areas, aspects = self.strip if full else self.spot
            area, aspect = _between(areas, share) * width * height, _between(aspects, ratio)
            w = min(width, max(1, round((area / aspect) ** 0.5)))
            h = height if full else min(height, max(1, round((area * aspect) ** 0.5)))
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            planes[y : y + h, x : x + w] = grey * 2 - 1 if image.dtype == np.float32 else int(grey * 256)
        sample["image"] = image
        return sample


def _between(pair: Sequence[float], share: float) -> float:
    return pair[0] + (pair[1] - pair[0]) * share
