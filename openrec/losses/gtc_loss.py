"""The loss of a CTC decoder and of the decoder that guides it (Hu et al., "GTC", AAAI 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from openrec import registry
from openrec.losses.ctc_loss import CTCLoss


class GTCLoss(nn.Module):
    """``ctc_weight * CTC + gtc_weight * guide``; the parts are returned unweighted beside it.

    Args:
        gtc_loss: config of the guide's loss.

    Predictions: ``GTCDecoder``'s mapping. The batch's last two are CTC label and length, the rest the guide's.
    """

    nested = {"gtc_loss": "loss"}

    def __init__(
        self,
        gtc_loss: Mapping[str, Any],
        gtc_weight: float = 1.0,
        ctc_weight: float = 1.0,
        zero_infinity: bool = True,
    ):
        super().__init__()
        self.gtc_weight, self.ctc_weight = gtc_weight, ctc_weight
        self.ctc_loss = CTCLoss(zero_infinity=zero_infinity)
        self.gtc_loss = registry.build("loss", gtc_loss, "Loss.gtc_loss")

    def forward(self, predictions: Mapping[str, Any], batch: Sequence[Tensor]) -> dict[str, Tensor]:
        ctc = self.ctc_loss(predictions["ctc_pred"], [batch[0], *batch[-2:]])["loss"]
        guide = self.gtc_loss(predictions["gtc_pred"], batch[:-2])["loss"]
        return {"loss": self.ctc_weight * ctc + self.gtc_weight * guide, "ctc_loss": ctc, "gtc_loss": guide}
