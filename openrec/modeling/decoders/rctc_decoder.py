"""RCTC: CTC over a 2-D feature map, each column rearranged by a learned vertical attention.

Du et al., "SVTRv2: CTC Beats Encoder-Decoder Models in Scene Text Recognition", ICCV 2025. State-dict names
are those of OpenOCR (https://github.com/Topdu/OpenOCR, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.decoders.classes import map_rows
from openrec.modeling.layers import Attention, Mlp, trunc_normal_
from openrec.modeling.record import record


class RowBlock(nn.Module):
    """A pre-norm transformer block over the sequence ``[B, W, C]``."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class RCTCDecoder(nn.Module):
    """``[B, C, H, W]`` -> ``[B, W, classes]``: logits in training, probabilities in evaluation.

    Args:
        in_channels: C, a multiple of 32 (the width of a head of the row attention).
        out_channels: classes, the blank included.
        return_feats: training returns ``(features [B, W, C], logits)``.

    It tells the attention as ``rows`` [B, W, H].
    """

    needs = "2d"

    def __init__(self, in_channels: int, out_channels: int = 6625, return_feats: bool = False):
        super().__init__()
        if in_channels % 32:
            raise ConfigError(
                f"RCTCDecoder: expected in_channels to be a multiple of 32 (the row attention's heads are 32 wide), "
                f"got {in_channels}. Change the last of Encoder.dims."
            )
        self.char_token = nn.Parameter(torch.zeros(1, 1, in_channels))
        self.return_feats = return_feats
        self.fc = nn.Linear(in_channels, out_channels)
        self.fc_kv = nn.Linear(in_channels, 2 * in_channels)  # keys first
        self.w_atten_block = RowBlock(in_channels, in_channels // 32)
        self.row_softmax = nn.Softmax(dim=1)
        trunc_normal_(self.char_token)

    def forward(self, x: Tensor, data: object = None) -> Tensor | tuple[Tensor, Tensor]:
        features = self.read(x)
        logits = self.fc(features)
        if not self.training:
            return logits.softmax(-1)
        return (features, logits) if self.return_feats else logits

    def read(self, x: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, W, C]``: for every column the attention's mean of its H values.

        The map holds H times more positions than the result, so keys and values are never formed for them:
        the score q.K(x) = (W_k' q).x + const, whose constant the softmax over h removes, and the mean of
        V(x) is V(mean of x).
        """
        b, c, h, w = x.shape
        x = x.permute(0, 2, 3, 1).reshape(b * h, w, c)
        x = self.w_atten_block(x).view(b, h, w, c)
        w_key, w_value = self.fc_kv.weight.chunk(2)
        query = (w_key * self.char_token.view(c, 1)).sum(0)  # [C]
        attention = self.row_softmax((x * query).sum(-1))  # [B, H, W]
        record(self, "rows", attention.transpose(1, 2))  # [B, W, H]
        mean = (x * attention.unsqueeze(-1)).sum(1)  # [B, W, C]
        return F.linear(mean, w_value, self.fc_kv.bias[c:])

    def map_characters(
        self, weights: Mapping[str, Tensor], theirs: Sequence[str], ours: Sequence[str], prefix: str = ""
    ) -> dict[str, Tensor]:
        """See ``map_rows``; the blank is class 0."""
        return map_rows(self, ("fc",), weights, theirs, ours, prefix, first=1)
