"""Data sets that resize by ratio bucket: images of similar width / height share a batch and a size.

Bucketing, sizes and names are those of OpenOCR's SVTRv2 recipe (https://github.com/Topdu/OpenOCR,
Apache-2.0; Du et al., "SVTRv2: CTC Beats Encoder-Decoder Models in Scene Text Recognition", 2024).
The bucket comes from the stored image, never from the augmented one, so that no augmentation makes
a sample disappear; padding goes to the right and its width is varied in training only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from openrec import registry
from openrec.charset import Charset
from openrec.data import openocr_rule
from openrec.data.base import check_fractions
from openrec.data.lmdb_dataset import LmdbWords
from openrec.data.types import Pick
from openrec.errors import ConfigError
from openrec.preprocess import geometry


class RatioDataSetTVResize(LmdbWords):
    """LMDB records by ratio bucket, resized with Pillow's bicubic filter.

    Bucket of width / height r: ``q = clip(round_half_even(r), min_ratio, max_ratio)``. Size of bucket q, (width,
    height): ``base_shape[q - 1]`` for q <= 4, else ``(base_h * q, base_h)``. The image that ``KeepKeys`` sees is uint8
    ``[H, W, 3]`` (the collate function normalises whole batches) or, with padding, float32 ``[3, H, W]`` in [-1, 1].
    Adds ``valid_ratio`` (share of the width that is image) and ``real_ratio``.

    Args:
        data_dir_list: LMDB directories, not searched recursively.
        transforms: ends with ``KeepKeys``; the resize happens just before it.
        ratio_list: fraction of every source, or one for each; below 1 the part is drawn anew for every epoch.
        ds_width: always on; False is reported and has no effect.
        padding: keep the ratio and fill with zeros instead of stretching to the bucket's size. In training the
            content's width is varied by a factor in [0.5, 1.5).
        padding_rand: in training, invert ``padding`` for half of the samples.
        padding_doub: in training, pad on the other side for half of the samples.
        base_shape, base_h: px, see above.
        min_ratio, max_ratio: of the loader. An image narrower than ``min_ratio`` by more than a bucket is refused.
        mode, seed, charset, global_config: see ``WordDataset``.
    """

    resize = staticmethod(geometry.resize_pil)

    @staticmethod
    def largest_image(arguments: Mapping[str, Any], loader: Mapping[str, Any]) -> tuple[int, int]:
        """(height, width) px that no image of such a data set exceeds."""
        shapes = geometry.check_base_shape(arguments.get("base_shape"), "dataset")
        low, high = int(loader.get("min_ratio") or 1), int(loader.get("max_ratio") or 10)
        base_h = int(arguments.get("base_h", geometry.BASE_H))
        sizes = [geometry.bucket_size(q, shapes, base_h) for q in range(low, high + 1)]
        return max(h for _, h in sizes), max(w for w, _ in sizes)

    def __init__(
        self,
        data_dir_list: Sequence[str],
        transforms: Sequence[Any],
        ratio_list: float | Sequence[float] = 1.0,
        ds_width: bool = True,
        padding: bool = True,
        padding_rand: bool = False,
        padding_doub: bool = False,
        base_shape: Sequence[Sequence[int]] | None = None,
        base_h: int = geometry.BASE_H,
        *,
        min_ratio: int = 1,
        max_ratio: int = 10,
        mode: str = "Train",
        seed: int = 0,
        charset: Charset | None = None,
        global_config: Mapping[str, Any] | None = None,
    ) -> None:
        where = f"{mode}.dataset"
        paths = [data_dir_list] if isinstance(data_dir_list, str) else list(data_dir_list or ())
        if not paths:
            raise ConfigError(f"{where}.data_dir_list: expected at least one LMDB directory, got {data_dir_list!r}.")
        if not 1 <= min_ratio <= max_ratio:
            raise ConfigError(f"{mode}.loader: expected 1 <= min_ratio <= max_ratio, got {min_ratio} and {max_ratio}.")
        fractions = check_fractions(ratio_list, len(paths), where)
        self.base_shape, self.base_h = geometry.check_base_shape(base_shape, where), int(base_h)
        self.min_ratio, self.max_ratio = int(min_ratio), int(max_ratio)
        self.padding, self.padding_rand, self.padding_doub = padding, padding_rand, padding_doub
        if not ds_width:
            registry.warn_once(where, "ds_width", f"{where}.ds_width: False has no effect; buckets by ratio are used.")
        super().__init__(
            paths,
            transforms,
            with_ratio=True,
            judge_ratio=self._refuse,
            mode=mode,
            seed=seed,
            charset=charset,
            global_config=global_config,
        )
        self.buckets: np.ndarray = geometry.bucket(self.ratio, self.min_ratio, self.max_ratio)
        self.use_fractions(self.source, fractions)
        self._note(fractions)

    def _note(self, fractions: Sequence[float]) -> None:
        counts = np.bincount(self.buckets, minlength=1)
        shown = ", ".join(f"{q}: {n}" for q, n in enumerate(counts) if n)
        self.report.notes.append(f"samples by ratio bucket: {shown}")
        if self._strata is not None:
            self.report.used = self.samples_per_epoch
            self.report.notes.append(f"fractions {fractions} of the sources in every epoch")
        if self.padding or self.padding_rand:
            self.report.notes.append(
                "padding is on the right and never random in evaluation (OpenOCR: left in the TV form, random)"
            )

    def _refuse(self, ratio: float) -> str | None:
        """OpenOCR's test for images that would be stretched too far, on the stored image's ratio."""
        if not self.training and self.min_ratio == 1:
            return None
        width, height = self.size_of(int(geometry.bucket(ratio, self.min_ratio, self.max_ratio)))
        if width // height >= int(ratio) + 2:
            return f"image is too narrow for min_ratio {self.min_ratio}"
        return None

    def size_of(self, q: int) -> tuple[int, int]:
        """``(width, height)`` px of bucket ``q``."""
        return geometry.bucket_size(q, self.base_shape, self.base_h)

    def fit(self, sample: dict[str, Any], pick: Pick) -> dict[str, Any]:
        image = geometry.as_array(sample["image"])
        h, w = image.shape[:2]
        width, height = self.size_of(pick.ratio or int(self.buckets[pick.index]))
        rng, training = sample["rng"], sample["training"]
        padding = self.padding
        if self.padding_rand and training and rng.random() < 0.5:
            padding = not padding
        content = width
        if padding:
            content = self._content(width, height, w / h, rng if training else None)
            left = self.padding_doub and training and rng.random() < 0.5
            image = geometry.normalize(self.resize(image, content, height))
            sample["image"] = geometry.pad_width(image, width, left)
        else:
            image = self.resize(image, width, height)
            sample["image"] = geometry.normalize(image) if self.padding_rand else image
        sample["valid_ratio"] = min(1.0, content / width)
        sample["real_ratio"] = max(1, round(w / h))
        sample["gen_ratio"] = width // height
        return sample

    @staticmethod
    def _content(width: int, height: int, ratio: float, rng: np.random.Generator | None) -> int:
        if math.ceil(height * ratio) > width:
            return width
        stretch = 0.5 + rng.random() if rng is not None else 1.0
        return geometry.content_width(width, height, ratio * stretch)


class RatioDataSet(RatioDataSetTVResize):
    """The same with OpenCV's bilinear resize."""

    ignored_keys = ("syn",)
    resize = staticmethod(geometry.resize_cv)


class _Benchmark(RatioDataSetTVResize):
    """Marks the samples that OpenOCR's benchmark rule leaves out; every sample is served and scored.

    ``Sample.excluded`` carries the reason (see ``openocr_rule``; with a dictionary that is not ASCII, labels are not
    folded to ASCII, which would leave out every sample). Padding is always off.
    """

    def __init__(
        self,
        data_dir_list: Sequence[str],
        transforms: Sequence[Any],
        ratio_list: float | Sequence[float] = 1.0,
        ds_width: bool = True,
        padding: bool = False,
        padding_rand: bool = False,
        padding_doub: bool = False,
        base_shape: Sequence[Sequence[int]] | None = None,
        base_h: int = geometry.BASE_H,
        *,
        min_ratio: int = 1,
        max_ratio: int = 10,
        mode: str = "Eval",
        seed: int = 0,
        charset: Charset | None = None,
        global_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(
            data_dir_list,
            transforms,
            ratio_list,
            ds_width,
            False,
            False,
            False,
            base_shape,
            base_h,
            min_ratio=min_ratio,
            max_ratio=max_ratio,
            mode=mode,
            seed=seed,
            charset=charset,
            global_config=global_config,
        )

    def judge(self, text: str) -> str | None:
        reason = super().judge(text)
        if self.charset is None:
            return reason
        return openocr_rule.exclusion(text, self.charset, self.max_text_length) or reason


class RatioDataSetTVResizeTest(_Benchmark):
    __doc__ = _Benchmark.__doc__


class RatioDataSetTest(_Benchmark):
    __doc__ = _Benchmark.__doc__
    ignored_keys = ("syn",)
    resize: Callable[..., np.ndarray] = staticmethod(geometry.resize_cv)
