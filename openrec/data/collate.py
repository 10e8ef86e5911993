"""From samples to a batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openrec import registry
from openrec.data.types import Batch, Sample, Skipped
from openrec.errors import DataError


def collate(items: Sequence[Sample | Skipped]) -> Batch:
    """Stack the values of all samples; list those that were skipped.

    uint8 images ``[H, W, 3]`` or ``[H, W]`` are normalised here, a whole batch at a time: float32 ``[B, C, H, W]``,
    ``(v / 255 - 0.5) / 0.5``. Float images ``[C, H, W]`` are stacked as they are.

    Raises:
        DataError: values of different shapes.
    """
    samples = [item for item in items if isinstance(item, Sample)]
    batch = Batch(
        texts=[s.text for s in samples],
        names=[s.name for s in samples],
        skipped=[item for item in items if isinstance(item, Skipped)],
        excluded=[s.excluded for s in samples],
        unreadable=[s.unreadable for s in samples],
        weight=items[0].weight if items else 1.0,
    )
    if samples:
        columns = list(zip(*(s.values for s in samples)))
        batch.tensors = [_images(columns[0], batch.names), *(_stack(c, batch.names) for c in columns[1:])]
    return batch


def _images(images: Sequence[np.ndarray], names: Sequence[str]) -> Tensor:
    if len({image.shape for image in images}) > 1:
        return _pad_images(images, names)
    stacked = torch.from_numpy(np.stack(images))
    if stacked.dtype != torch.uint8:
        return stacked
    stacked = stacked[:, None] if stacked.ndim == 3 else stacked.permute(0, 3, 1, 2)
    values = stacked.to(torch.float32, memory_format=torch.contiguous_format)
    return values.div_(255).sub_(0.5).div_(0.5)


def _pad_images(images: Sequence[np.ndarray], names: Sequence[str]) -> Tensor:
    """Float images of one height and several widths, filled with zeros on the right."""
    if images[0].ndim != 3 or images[0].dtype == np.uint8 or len({i.shape[:-1] for i in images}) > 1:
        shapes = ", ".join(f"{tuple(i.shape)} ({n})" for i, n in list(zip(images, names))[:3])
        raise DataError(
            f"images of one batch have different shapes: {shapes}. Expected one size: add a resize to the transforms, "
            "use a RatioDataSet with RatioSampler, or batch_size_per_card: 1."
        )
    registry.warn_once(
        "collate", "widths", "images of different widths share a batch and are filled with zeros; scores may depend "
        "on the batch (batch_size_per_card: 1 avoids that)"
    )  # fmt: skip
    out = np.zeros((len(images), *images[0].shape[:-1], max(i.shape[-1] for i in images)), np.float32)
    for row, image in zip(out, images):
        row[..., : image.shape[-1]] = image
    return torch.from_numpy(out)


def _stack(values: Sequence[Any], names: Sequence[str]) -> Tensor:
    first = values[0]
    try:
        if isinstance(first, np.ndarray):
            return torch.from_numpy(np.stack(values))
        if isinstance(first, Tensor):
            return torch.stack(list(values))
        if isinstance(first, (int, float)):
            return torch.tensor(values, dtype=torch.float64 if isinstance(first, float) else torch.int64)
        return torch.from_numpy(np.array(values))
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(
            f"values of one batch cannot be stacked ({error}); first sample: {names[0]}. Expected numbers or arrays of "
            "one shape behind KeepKeys.keep_keys."
        ) from error
