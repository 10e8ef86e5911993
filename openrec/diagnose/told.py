"""One image read while every module tells what it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openrec.modeling.record import Recorder
from openrec.postprocess.base import Decoded
from openrec.reading.looking import straightened


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


@torch.no_grad()
def look(recognizer: Any, image: Tensor, name: str = "", truth: str | None = None) -> Seen:
    """Read one image, float32 [3, H, W] in [-1, 1], with a recogniser that runs PyTorch."""
    model = recognizer.model.eval()
    device = next(model.parameters()).device
    with Recorder(model) as recorder:
        predictions = model(image[None].to(device))
    told = {(module, key): [_of_one(key, t) for t in tensors] for (module, key), tensors in recorder.entries.items()}
    picture = (image.permute(1, 2, 0).cpu().numpy() * 0.5 + 0.5).clip(0, 1)
    seen = Seen(name, np.rint(picture * 255).astype(np.uint8), recognizer.decode(predictions)[0], told, truth=truth)
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


def split_map(length: int, image: np.ndarray) -> tuple[int, int]:
    """``(h, w)`` of a map read row by row: the factors whose ratio is nearest to the image's."""
    ratio = image.shape[1] / image.shape[0]
    pairs = [(h, length // h) for h in range(1, length + 1) if length % h == 0]
    return min(pairs, key=lambda p: abs(math.log(p[1] / p[0] / ratio)))
