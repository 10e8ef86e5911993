"""The loss of hard attention: cross-entropy of the characters, and REINFORCE for where they were looked for.

Williams, Machine Learning 8, 1992; Xu et al., "Show, Attend and Tell", ICML 2015, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.modeling.decoders.hard_attn_decoder import reward_to_go, rewards


class HardAttnLoss(nn.Module):
    """Its gradient is that of ``E_s[log p(y | s)]`` plus the entropy's, per character, with the sign turned.

    Args:
        label_smoothing: of the cross-entropy; rewards are plain log-likelihoods.

    Predictions: ``HardAttnDecoder``'s mapping. ``batch[1]``: labels of ``ARLabelEncode``. Beside ``loss`` it tells
    ``ce_loss``, ``policy_loss``, ``entropy`` (nats per step), ``adv_std`` (spread of reward minus baseline),
    ``value_loss`` of a learned baseline, and ``soft_gap`` where the decoder measured it.
    """

    def __init__(self, label_smoothing: float = 0.1):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, predictions: Mapping[str, Any], batch: Sequence[Tensor]) -> dict[str, Tensor]:
        logits, how = predictions["logits"], predictions["estimator"]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # [B, S, T, classes]
        samples, steps, classes = logits.shape[1:]
        mask = predictions["reward_mask"].unsqueeze(1)  # [B, 1, T]
        target = batch[1][:, 1 : 1 + steps].unsqueeze(1).expand(-1, samples, -1)
        target = target.masked_fill(~mask, classes + 1)
        count = (mask.sum() * samples).clamp(min=1)

        ce = F.cross_entropy(
            logits.flatten(0, 2),
            target.flatten(),
            ignore_index=classes + 1,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        parts = {"ce_loss": ce / count, "entropy": (predictions["entropy"] * mask).sum() / count}
        loss = parts["ce_loss"]
        value = predictions.get("value")
        index = target.masked_fill(~mask, 0)
        total = reward_to_go(rewards(logits, index[:, 0], mask[:, 0]), how.reward)  # [B, S, T]
        if how.sampled:
            advantage = (total - self._baseline(total, value, how.baseline)) * mask
            policy = -(advantage * predictions["log_pi"]).sum() / count
            parts |= {"policy_loss": policy, "adv_std": _std(advantage, mask)}
            loss = loss + how.lambda_r * policy - how.lambda_e * parts["entropy"]
        if how.baseline == "learned" and value is not None:
            parts["value_loss"] = ((value - total).square() * mask).sum() / count
            loss = loss + parts["value_loss"]
        if "soft_gap" in predictions:
            parts["soft_gap"] = predictions["soft_gap"]
        return {"loss": loss, **parts}

    @staticmethod
    def _baseline(total: Tensor, value: Tensor | None, kind: str) -> Tensor:
        """What the reward is compared with; never a function of the very sample that it is for."""
        if kind == "self":
            return (total.sum(1, keepdim=True) - total) / (total.shape[1] - 1)
        return torch.zeros_like(total) if value is None else value.detach()


def _std(x: Tensor, mask: Tensor) -> Tensor:
    """Standard deviation over the unmasked steps."""
    mask = mask.expand_as(x)
    count = mask.sum().clamp(min=1)
    mean = x.sum() / count
    return ((x - mean).square() * mask).sum().div(count).sqrt()
