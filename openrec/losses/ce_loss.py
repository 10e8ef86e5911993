"""Plain cross-entropy, for whole-image classes and for sequences of characters."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.losses.ctc_loss import last_prediction

SMOOTHING = 0.1


class CELoss(nn.Module):
    """Mean cross-entropy of logits ``[B, C]`` or ``[B, T, C]`` with ``batch[1]``.

    Args:
        smoothing: spread 0.1 of every target evenly over all classes.
        with_all: every position of ``batch[1]`` is a target (``CELabelEncode``); False: ``batch[1]`` starts with
            ``<s>`` and ``batch[2]`` holds text lengths (``ARLabelEncode``). A batch without lengths means True.
        ignore_index: a target that does not count. Special tokens after the last class never count.

    OpenOCR's class of this name expects a mapping that no decoder returns, and smooths by dividing by -1.
    """

    def __init__(self, smoothing: bool = False, with_all: bool = False, ignore_index: int = -1):
        super().__init__()
        self.label_smoothing = SMOOTHING if smoothing else 0.0
        self.with_all, self.ignore_index = with_all, ignore_index

    def forward(self, predictions: Tensor | Sequence[Tensor], batch: Sequence[Tensor]) -> dict[str, Tensor]:
        logits = last_prediction(predictions)
        classes, target = logits.shape[-1], batch[1]
        if not self.with_all and len(batch) > 2:
            target = target[:, 1 : 1 + logits.shape[1]]
        if target.numel() * classes != logits.numel():
            raise ConfigError(
                f"CELoss: predictions {tuple(logits.shape)} and labels {tuple(target.shape)} do not match. Expected "
                "one label per prediction: set Loss.with_all, or choose the label encoder that fits the decoder."
            )
        target = target.flatten().masked_fill(target.flatten() >= classes, self.ignore_index)
        loss = F.cross_entropy(
            logits.view(-1, classes), target, ignore_index=self.ignore_index, label_smoothing=self.label_smoothing
        )
        return {"loss": loss}
