"""A linear CTC head, with or without a small SVTR neck (``EncoderWithSVTR``) in front of it.

The neck is PP-OCR's (Du et al., "SVTR: Scene Text Recognition with a Single Visual Model", IJCAI 2022, and
PaddleOCR); options and state-dict names are OpenOCR's (https://github.com/Topdu/OpenOCR, Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec import registry
from openrec.modeling.decoders.classes import map_rows
from openrec.modeling.layers import Attention, ConvBNLayer, Mlp, drop_path, flatten_map, init_svtr, unflatten_map


class NeckBlock(nn.Module):
    """A pre-norm transformer block with Swish over ``[B, N, C]``."""

    def __init__(self, dim: int, mlp_ratio: float, drop: float, drop_path_rate: float, **attention: Any):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-5)
        self.mixer = Attention(dim, proj_drop=drop, **attention)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=nn.SiLU, drop=drop)
        self.drop_path = drop_path(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.mixer(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class EncoderWithSVTR(nn.Module):
    """``[B, C, H, W]`` -> ``[B, W/2, dims]`` (``use_pool``) or ``[B, H*W, dims]``.

    Args:
        dims: channels of the output.
        hidden_dims: channels inside the ``depth`` transformer blocks.
        use_guide: cut the gradient to the encoder, for use beside another branch that trains it. Alone,
            the encoder then learns nothing.
        kernel_size: ``[height, width]`` of the first and the last 2-D convolution.
        use_pool: average over the height and over pairs of columns first.
    """

    def __init__(
        self,
        in_channels: int,
        dims: int = 64,
        depth: int = 2,
        hidden_dims: int = 120,
        use_guide: bool = False,
        num_heads: int = 8,
        qkv_bias: bool = True,
        mlp_ratio: float = 2.0,
        drop_rate: float = 0.1,
        attn_drop_rate: float = 0.1,
        drop_path: float = 0.0,
        kernel_size: Sequence[int] = (3, 3),
        qk_scale: float | None = None,
        use_pool: bool = True,
    ):
        super().__init__()
        self.use_guide, self.use_pool = use_guide, use_pool
        kernel = (kernel_size[0], kernel_size[1])
        wide: dict[str, Any] = {"kernel_size": kernel, "padding": (kernel[0] // 2, kernel[1] // 2), "act": nn.SiLU}
        point: dict[str, Any] = {"kernel_size": 1, "act": nn.SiLU}
        self.conv1 = ConvBNLayer(in_channels, in_channels // 8, **wide)
        self.conv2 = ConvBNLayer(in_channels // 8, hidden_dims, **point)
        attention = {"num_heads": num_heads, "qkv_bias": qkv_bias, "qk_scale": qk_scale, "attn_drop": attn_drop_rate}
        self.svtr_block = nn.ModuleList(
            NeckBlock(hidden_dims, mlp_ratio, drop_rate, drop_path, **attention) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(hidden_dims, eps=1e-6)
        self.conv3 = ConvBNLayer(hidden_dims, in_channels, **point)
        self.conv4 = ConvBNLayer(2 * in_channels, in_channels // 8, **wide)
        self.conv1x1 = ConvBNLayer(in_channels // 8, dims, **point)
        self.apply(init_svtr)

    def forward(self, x: Tensor) -> Tensor:
        if self.use_pool:
            x = F.avg_pool2d(x.mean(2, keepdim=True), (1, 2))  # [B, C, 1, W//2]
        if self.use_guide:
            x = x.detach()
        z = self.conv2(self.conv1(x))
        height, width = z.shape[-2:]
        z = flatten_map(z)
        for block in self.svtr_block:
            z = block(z)
        z = self.conv3(unflatten_map(self.norm(z), (height, width)))
        z = self.conv1x1(self.conv4(torch.cat((x, z), 1)))
        return flatten_map(z)


class CTCDecoder(nn.Module):
    """Tokens ``[B, T, C]``, or a map ``[B, C, H, W]`` with ``svtr_encoder``, -> ``[B, T, classes]``.

    Args:
        out_channels: classes, the blank included.
        mid_channels: width of a second linear layer (no activation between the two).
        return_feats: training returns ``(features, logits)``.
        svtr_encoder: arguments of ``EncoderWithSVTR``.

    Training gives logits, evaluation probabilities. ``needs`` is '2d' with ``svtr_encoder``, else 'seq'.
    """

    needs = "seq"
    nested = {"svtr_encoder": EncoderWithSVTR}

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 6625,
        mid_channels: int | None = None,
        return_feats: bool = False,
        svtr_encoder: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.return_feats = return_feats
        self.svtr_encoder: nn.Module | None = None
        if svtr_encoder is not None:
            self.needs = "2d"
            arguments = {k: v for k, v in svtr_encoder.items() if k != "name"}
            self.svtr_encoder = registry.call(
                EncoderWithSVTR, arguments, "Architecture.Decoder.svtr_encoder", in_channels=in_channels
            )
            in_channels = arguments.get("dims", 64)
        if mid_channels is None:
            self.fc: nn.Module = nn.Linear(in_channels, out_channels)
        else:
            self.fc1 = nn.Linear(in_channels, mid_channels)
            self.fc2 = nn.Linear(mid_channels, out_channels)
        self.mid_channels = mid_channels

    def forward(self, x: Tensor, data: object = None) -> Tensor | tuple[Tensor, Tensor]:
        if self.svtr_encoder is not None:
            x = self.svtr_encoder(x)
        if self.mid_channels is None:
            logits = self.fc(x)
        else:
            x = self.fc1(x)
            logits = self.fc2(x)
        if not self.training:
            return logits.softmax(-1)
        return (x, logits) if self.return_feats else logits

    def map_characters(
        self, weights: Mapping[str, Tensor], theirs: Sequence[str], ours: Sequence[str], prefix: str = ""
    ) -> dict[str, Tensor]:
        """See ``map_rows``; the blank is class 0."""
        return map_rows(
            self, ("fc",) if self.mid_channels is None else ("fc2",), weights, theirs, ours, prefix, first=1
        )
