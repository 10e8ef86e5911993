"""Connectionist temporal classification (Graves et al., ICML 2006) over frames of logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def last_prediction(predictions: Tensor | Sequence[Tensor]) -> Tensor:
    """The logits of a decoder that may return ``(features, logits)``, in float32 at least."""
    logits = predictions if isinstance(predictions, Tensor) else predictions[-1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class CTCLoss(nn.Module):
    """Mean over the batch of each sample's negative log-likelihood, not divided by its length.

    Args:
        use_focal_loss: weigh each sample's loss l by (1 - exp(-l))^2.
        zero_infinity: a label that does not fit into the frames counts as 0 instead of infinity.

    Predictions: logits ``[B, T, C]``, blank 0. ``batch[1]``: labels ``[B, L]``; ``batch[2]``: their lengths.
    """

    def __init__(self, use_focal_loss: bool = False, zero_infinity: bool = False):
        super().__init__()
        self.use_focal_loss, self.zero_infinity = use_focal_loss, zero_infinity

    def forward(self, predictions: Tensor | Sequence[Tensor], batch: Sequence[Tensor]) -> dict[str, Tensor]:
        logits = last_prediction(predictions)
        loss = F.ctc_loss(
            logits.log_softmax(-1).transpose(0, 1),  # [T, B, C]
            batch[1],
            batch[2].new_full((logits.shape[0],), logits.shape[1]),
            batch[2],
            reduction="none",
            zero_infinity=self.zero_infinity,
        )
        if self.use_focal_loss:
            weight = (1 - torch.exp(-loss.clamp(-20, 20))) ** 2
            loss = torch.where(loss > 0, weight * loss, loss)
        return {"loss": loss.mean()}
