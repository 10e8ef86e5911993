"""How a picture becomes the input of a model, as its evaluation did it; travels inside checkpoints and exports.

Sizes by ratio bucket, fixed sizes and dynamic widths are those of OpenOCR's data sets and transforms
(https://github.com/Topdu/OpenOCR, Apache-2.0). A batch holds pictures of one size only, so that nothing is padded that
was not padded in training.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from openrec.errors import ConfigError, SampleError
from openrec.preprocess import create_operators, geometry
from openrec.preprocess.decode import DecodeImagePIL

_FILTERS = {"pillow_bicubic": geometry.resize_pil, "opencv_bilinear": geometry.resize_cv}
_BILINEAR_SETS = ("RatioDataSet", "RatioDataSetTest", "MultiScaleDataSet")
_SCALE = "(v / 255 - 0.5) / 0.5, padding is 0"  # for people who read the metadata
_DIVISOR = 8  # px; widths of MultiScaleSampler with ``ds_width``


class Prepared(NamedTuple):
    """A picture ready for a batch.

    Attributes:
        image: uint8 ``[H, W, 3]`` (normalised later, a whole batch at a time), or float32 ``[C, H, W]`` in [-1, 1],
            or float32 ``[N, C, H, W]``: N windows that are read one by one.
        valid: share of the width that holds the picture; the rest on the right is padding.
    """

    image: np.ndarray
    valid: float = 1.0


class Preprocessor:
    """Decoding, the evaluation's transforms without labels, and the resize.

    Args:
        ops: as in a YAML's ``transforms``: ``[{"DecodeImagePIL": {"img_mode": "RGB"}}, ...]``; the first one decodes.
        sizes: for a model trained in ratio buckets ``{"kind": "buckets", "filter", "base_shape", "base_h",
            "min_ratio", "max_ratio", "padding"}``; for ``MultiScaleDataSet`` ``{"kind": "scale", "size": [w, h],
            "max_width"}``; None where an op resizes.
        max_side: longest side of an input in pixels; longer ones are refused.
    """

    def __init__(self, ops: list[dict[str, Any]], sizes: Mapping[str, Any] | None = None, max_side: int = 8192) -> None:
        self.sizes: dict[str, Any] | None = dict(sizes) if sizes else None
        self._state: dict[str, Any] = {"ops": copy.deepcopy(ops), "sizes": self.sizes, "scale": _SCALE}
        self.ops: list[Any] = create_operators(ops, "preprocess")
        self.max_side = max_side
        if not self.ops or not type(self.ops[0]).__name__.startswith("DecodeImage"):
            self.ops.insert(0, DecodeImagePIL())
        self.color: str = getattr(self.ops[0], "img_mode", "RGB")
        if self.sizes is not None:
            _check(self.sizes)
            self._filter = _FILTERS[self.sizes["filter"]]

    def state(self) -> dict[str, Any]:
        """Plain types for an export's metadata; ``Preprocessor.from_state`` is the way back."""
        return copy.deepcopy(self._state)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Preprocessor:
        return cls(state["ops"], state.get("sizes"))

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Preprocessor:
        """What ``Eval`` does to a picture; ``Train`` without its augmentation where there is no ``Eval``.

        Raises:
            ConfigError: neither section names a data set.
        """
        section = next((config[m] for m in ("Eval", "Train") if (config.get(m) or {}).get("dataset")), None)
        if section is None:
            raise ConfigError(
                "the config has neither Eval.dataset nor Train.dataset, so nothing says how a picture is resized. "
                "Give one of them, as the model was trained."
            )
        dataset = section["dataset"]
        ops = [op for op in map(_as_mapping, dataset.get("transforms") or []) if _concerns_images(next(iter(op)))]
        if not ops or not next(iter(ops[0])).startswith("DecodeImage"):
            ops.insert(0, {"DecodeImagePIL": {"img_mode": "RGB"}})
        resized = any("Resize" in next(iter(op)) for op in ops)
        return cls(ops, None if resized else _sizes(section))

    def __call__(self, image: bytes | np.ndarray) -> Prepared:
        """Prepare encoded bytes, or an RGB array uint8 ``[H, W, 3]``.

        Raises:
            SampleError: not an image; without pixels; too long for the model.
        """
        if isinstance(image, np.ndarray):
            image = self._recolor(image)
        sample: dict[str, Any] = {"image": image, "label": "", "training": False, "rng": None}
        sample = self.ops[0](sample)
        height, width = np.asarray(sample["image"]).shape[:2]
        if not height or not width:
            raise SampleError("image has no pixels")
        self._refuse_long(width, height)
        for op in self.ops[1:]:
            sample = op(sample)
        if self.sizes is not None:
            return self._resize(geometry.as_array(sample["image"]))
        return Prepared(np.ascontiguousarray(sample["image"]), float(sample.get("valid_ratio", 1.0)))

    def _recolor(self, image: np.ndarray) -> np.ndarray:
        if self.color == "BGR":
            return np.ascontiguousarray(image[..., ::-1])
        if self.color.upper() == "GRAY":
            from PIL import Image

            grey = np.asarray(Image.fromarray(image).convert("L"))
            return grey if self.color == "Gray" else np.repeat(grey[..., None], 3, 2)
        return image

    def _refuse_long(self, width: int, height: int) -> None:
        """Ops that keep the ratio would make an input as long as the picture is narrow."""
        heights = [getattr(op, "height", getattr(op, "base_h", 32)) for op in self.ops[1:]]
        dynamic = any(type(op).__name__ in ("RecDynamicResize", "SliceTVResize") for op in self.ops)
        if dynamic and max(heights) * width / height > self.max_side:
            raise SampleError(
                f"image is {width} x {height} px, too long a line to read at once "
                f"(more than {self.max_side} px wide at the model's height); cut it into words"
            )

    # -- sizes ---------------------------------------------------------------------------------------

    def _resize(self, image: np.ndarray) -> Prepared:
        """The data set's own resize, in its evaluation form."""
        assert self.sizes is not None
        h, w = image.shape[:2]
        width, height = self._size(w / h)
        if not self.sizes["padding"]:
            return Prepared(self._filter(image, width, height))
        content = geometry.content_width(width, height, w / h)
        padded = geometry.pad_width(geometry.normalize(self._filter(image, content, height)), width)
        return Prepared(padded, min(1.0, content / width))

    def _size(self, ratio: float) -> tuple[int, int]:
        """``(width, height)`` px for a picture of this width / height."""
        sizes = self.sizes
        assert sizes is not None
        if sizes["kind"] == "buckets":
            q = int(geometry.bucket(ratio, sizes["min_ratio"], sizes["max_ratio"]))
            width, height = geometry.bucket_size(q, sizes["base_shape"], sizes["base_h"])
            return width, height
        width, height = sizes["size"]
        if sizes.get("max_width"):
            width = _DIVISOR * max(1, round(min(ratio * height, sizes["max_width"]) / _DIVISOR))
        return width, height

    def shapes(self) -> list[tuple[int, int]]:
        """All ``(width, height)`` px an input can have; empty where there is no end of them."""
        if self.sizes is not None and self.sizes["kind"] == "buckets":
            low, high = self.sizes["min_ratio"], self.sizes["max_ratio"]
            return list(dict.fromkeys(self._size(q) for q in range(low, high + 1)))
        if self.sizes is not None:
            return [] if self.sizes.get("max_width") else [self._size(1.0)]
        fixed = [op for op in self.ops if type(op).__name__ in ("RecTVResize", "SVTRResize")]
        return [(fixed[-1].width, fixed[-1].height)] if fixed else []


def _as_mapping(entry: Any) -> dict[str, Any]:
    (name, arguments), *_ = entry.items() if isinstance(entry, Mapping) else ((entry, None),)
    return {str(name): dict(arguments or {})}


def _concerns_images(name: str) -> bool:
    return "Label" not in name and "Aug" not in name and name != "KeepKeys"


def _sizes(section: Mapping[str, Any]) -> dict[str, Any]:
    dataset, loader, sampler = section["dataset"], section.get("loader") or {}, section.get("sampler") or {}
    name = str(dataset.get("name"))
    kind = "opencv_bilinear" if name in _BILINEAR_SETS else "pillow_bicubic"
    if name == "MultiScaleDataSet":
        scale = (sampler.get("scales") or [[320, 48]])[0]
        size = [scale, scale] if isinstance(scale, int) else list(scale)
        widest = float(sampler.get("max_w", 480.0)) if dataset.get("ds_width") else None
        return {"kind": "scale", "filter": kind, "size": size, "max_width": widest, "padding": True}
    return {
        "kind": "buckets", "filter": kind, "base_h": int(dataset.get("base_h", geometry.BASE_H)),
        "base_shape": [list(s) for s in geometry.check_base_shape(dataset.get("base_shape"), "dataset")],
        "min_ratio": int(loader.get("min_ratio") or 1), "max_ratio": int(loader.get("max_ratio") or 10),
        "padding": bool(dataset.get("padding", name.startswith("RatioDataSet"))) and not name.endswith("Test"),
    }  # fmt: skip


def _check(sizes: Mapping[str, Any]) -> None:
    if sizes.get("kind") not in ("buckets", "scale") or sizes.get("filter") not in _FILTERS:
        raise ConfigError(
            f"preprocess.sizes: expected kind buckets or scale and a filter of {', '.join(_FILTERS)}, got {sizes!r}. "
            "Is the file from a later version of openrec?"
        )
