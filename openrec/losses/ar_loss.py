"""Cross-entropy of a decoder that reads one character after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from openrec.losses.ctc_loss import last_prediction


class ARLoss(nn.Module):
    """Mean cross-entropy over characters and end token.

    Args:
        label_smoothing: share of the target spread over all classes.

    Predictions: logits ``[B, T, N + 1]`` with T = 1 + the batch's longest text, or ``{"logits", "penalty"}``, whose
    scalar penalty is added. ``batch[1]``: labels ``[B, L + 2]`` of ``ARLabelEncode``;
    ``<pad>`` (N + 2, that is classes + 1) is left out.
    """

    ignored_keys = ("ignore_index",)

    def __init__(self, label_smoothing: float = 0.1):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(
        self, predictions: Tensor | Sequence[Tensor] | Mapping[str, Tensor], batch: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        penalty = predictions["penalty"] if isinstance(predictions, Mapping) else None
        logits = last_prediction(predictions["logits"] if isinstance(predictions, Mapping) else predictions)
        target = batch[1][:, 1 : 1 + logits.shape[1]]  # after <s>
        loss = F.cross_entropy(
            logits.flatten(0, 1),
            target.flatten(),
            ignore_index=logits.shape[-1] + 1,
            label_smoothing=self.label_smoothing,
        )
        return {"loss": loss} if penalty is None else {"loss": loss + penalty, "penalty": penalty}
