"""``MultiScaleDataSet``: image files resized to the size that ``MultiScaleSampler`` asks for.

Names and line format are OpenOCR's (https://github.com/Topdu/OpenOCR, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openrec.charset import Charset
from openrec.data.simple_dataset import SimpleDataSet
from openrec.data.types import Pick
from openrec.errors import SampleError
from openrec.preprocess import geometry

DEFAULT_SIZE = (320, 48)  # (width, height) px when no sampler asks for one


class MultiScaleDataSet(SimpleDataSet):
    """As ``SimpleDataSet``; the image keeps its ratio and is filled with zeros on the right up to ``Pick.size``.

    Args:
        ds_width: lines have four fields, ``path, label, width, height``, and batches are made of similar ratios.
    """

    def __init__(
        self,
        data_dir: str,
        label_file_list: Sequence[str],
        transforms: Sequence[Any],
        ratio_list: float | Sequence[float] = 1.0,
        delimiter: str = "\t",
        ds_width: bool = False,
        *,
        mode: str = "Train",
        seed: int = 0,
        charset: Charset | None = None,
        global_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.ds_width = ds_width
        self.extra_fields = 2 if ds_width else 0
        self.ratio: np.ndarray | None = None
        super().__init__(
            data_dir,
            label_file_list,
            transforms,
            ratio_list,
            delimiter,
            mode=mode,
            seed=seed,
            charset=charset,
            global_config=global_config,
        )

    def _check(self, line: bytes) -> tuple[str | None, str]:
        reason, label = super()._check(line)
        if reason is None and self.ds_width and _ratio(line.split(self.delimiter)[2:4]) is None:
            reason = "width or height is not a positive number"
        return reason, label

    def _after_scan(self) -> None:
        if self.ds_width:
            ratios = [_ratio(line.split(self.delimiter)[2:4]) for line in self.lines]
            self.ratio = np.array([4.0 if r is None else r for r in ratios], np.float32)

    def fit(self, sample: dict[str, Any], pick: Pick) -> dict[str, Any]:
        width, height = pick.size or DEFAULT_SIZE
        image = geometry.as_array(sample["image"])
        h, w = image.shape[:2]
        if not h or not w:
            raise SampleError("image has no pixels")
        content = geometry.content_width(width, height, w / h)
        resized = geometry.normalize(geometry.resize_cv(image, content, height))
        sample["image"] = geometry.pad_width(resized, width)
        sample["valid_ratio"] = min(1.0, content / width)
        sample["real_ratio"] = max(1, round(w / h))
        return sample


def _ratio(fields: Sequence[bytes]) -> float | None:
    try:
        width, height = (float(f) for f in fields)
    except ValueError:
        return None
    return width / height if width > 0 and height > 0 else None
