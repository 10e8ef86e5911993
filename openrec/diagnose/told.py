"""One image read while every module tells what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openrec.diagnose.scalars import weights_of
from openrec.modeling.record import Recorder
from openrec.postprocess.base import Decoded
from openrec.reading.looking import map_of, straightened, visible


@dataclass
class Seen:
    """An image and what was told while it was read.

    Attributes:
        image: the input, uint8 [H, W, 3]; ``rectified`` what a transform made of it, else the same.
        told: (module, key) -> arrays of this image, without a batch axis.
        columns: of a CTC head, probabilities [W, classes]; ``tokens`` the names of the classes.
        truth: the true text, where it is known.
    """

    name: str
    image: np.ndarray
    decoded: Decoded
    told: dict[tuple[str, str], list[np.ndarray]]
    columns: np.ndarray | None = None
    tokens: list[str] | None = None
    truth: str | None = None

    def of(self, key: str) -> dict[str, list[np.ndarray]]:
        """Module -> arrays told under ``key``."""
        return {module: arrays for (module, k), arrays in self.told.items() if k == key}

    @property
    def rectified(self) -> np.ndarray:
        grids = list(self.of("grid").values())
        return straightened(self.image, grids[-1][-1]) if grids else self.image

    def sees_input(self, module: str) -> bool:
        """Whether a module's places are places in the input; else they are in the rectified image."""
        return module.startswith("transform") or not self.of("grid")

    def map_size(self, module: str, count: int) -> tuple[int, int]:
        """``(h, w)`` of the map whose ``count`` places a module tells of row by row: that of the stage it is part of;
        for others, as decoders are, the last map that was told."""
        features = {name: arrays[-1].shape for name, arrays in self.of("feature").items()}
        around = sorted((name for name in features if module.startswith(f"{name}.")), key=len, reverse=True)
        return map_of(count, [features[name] for name in around or list(features)[::-1]])

    def maps(self, module: str, weights: np.ndarray) -> np.ndarray:
        """``[.., T, h, w]`` or ``[.., T, h * w]`` -> ``[T, h, w]``, the mean over what stands before T."""
        if weights_of(torch.from_numpy(weights)[None]).ndim > weights.ndim:  # not told with a map's two axes
            weights = weights.reshape(*weights.shape[:-1], *self.map_size(module, weights.shape[-1]))
        return weights.reshape(-1, *weights.shape[-3:]).mean(0)


@torch.no_grad()
def look(recognizer: Any, image: Tensor, name: str = "", truth: str | None = None) -> Seen:
    """Read one image, float32 [C, H, W] in [-1, 1], with a recogniser that runs PyTorch."""
    model = recognizer.model.eval()
    device = next(model.parameters()).device
    with Recorder(model) as recorder:
        predictions = model(image[None].to(device))
    told = {(module, key): [_of_one(key, t) for t in tensors] for (module, key), tensors in recorder.entries.items()}
    seen = Seen(name, visible(image.cpu().numpy()), recognizer.decode(predictions)[0], told, truth=truth)
    if recognizer.frames(predictions, image.shape[-1]) is not None:
        if isinstance(predictions, Mapping):
            predictions = predictions["ctc_pred"]
        predictions = predictions[-1] if isinstance(predictions, (list, tuple)) else predictions
        decoder = getattr(recognizer.post_process, "ctc_label_decode", recognizer.post_process)
        seen.columns, seen.tokens = predictions[0].float().cpu().numpy(), [str(t) for t in decoder.tokens]
    return seen


def _of_one(key: str, tensor: Tensor) -> np.ndarray:
    array = tensor.float().cpu().numpy()
    return array if key == "ref" and array.ndim == 2 else array[0]
