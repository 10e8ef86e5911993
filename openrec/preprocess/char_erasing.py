"""Erasing strips and spots, so that a recogniser learns to guess what it cannot see from what it can.

Baena et al., "General Detection-based Text Line Recognition" (DTLR), NeurIPS 2024, after random erasing (Zhong et al.,
AAAI 2020): some erased rectangles are as high as the picture and hide most of a character, others are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from openrec.errors import ConfigError


class CharErasing:
    """Paint grey rectangles over a picture, uint8 ``[H, W, C]`` or normalised ``[C, H, W]``; in training only.

    Args:
        strips, spots: rectangles tried, over the full height and small ones.
        p: probability of each.
        strip_area, spot_area: [least, most] share of the picture that one covers.
        aspect: [least, most] height over width of a spot.

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
        aspect: Sequence[float] = (3.0, 6.0),
    ) -> None:
        for name, pair in (("strip_area", strip_area), ("spot_area", spot_area), ("aspect", aspect)):
            if len(pair) != 2 or not 0 < pair[0] <= pair[1] or (name != "aspect" and pair[1] > 1):
                raise ConfigError(f"CharErasing.{name}: expected [least, most] above 0, shares at most 1; got {pair}.")
        if not 0 <= p <= 1:
            raise ConfigError(f"CharErasing.p: expected a probability, got {p}.")
        self.strips, self.spots, self.p = int(strips), int(spots), float(p)
        self.strip_area, self.spot_area, self.aspect = tuple(strip_area), tuple(spot_area), tuple(aspect)

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
            if number < self.strips:
                w, h = _between(self.strip_area, share) * width, height
            else:
                area, aspect = _between(self.spot_area, share) * width * height, _between(self.aspect, ratio)
                w, h = (area / aspect) ** 0.5, min(height, (area * aspect) ** 0.5)
            w, h = max(1, round(w)), max(1, round(h))
            x, y = int(left * (width - w + 1)), int(top * (height - h + 1))
            planes[y : y + h, x : x + w] = grey * 2 - 1 if image.dtype == np.float32 else int(grey * 256)
        sample["image"] = image
        return sample


def _between(pair: Sequence[float], share: float) -> float:
    return pair[0] + (pair[1] - pair[0]) * share
