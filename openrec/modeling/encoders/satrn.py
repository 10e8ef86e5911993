"""SATRN's encoder: attention over all positions of the map, with a 2-D position code and a convolutional feed-forward.

Lee et al., "On Recognizing Texts of Arbitrary Shapes with 2D Self-Attention", CVPRW 2020. State-dict names are those of
open-mmlab/mmocr (Apache-2.0), so that its encoder weights load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.encoders.stems import ConvBN, build_stem, map_size, run_stem
from openrec.modeling.layers import Linear, dot_product_attention, flatten_map, tell_attention, unflatten_map
from openrec.modeling.record import record, recording


def sine_table(positions: int, dim: int) -> Tensor:
    """``[dim, positions]``: sines of the position in even rows, cosines in odd rows, both at the same frequency."""
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = frequency[:, None] * torch.arange(positions, dtype=torch.float64)
    return torch.stack((angle.sin(), angle.cos()), 1).flatten(0, 1)[:dim].float()


class Adaptive2DPositionalEncoding(nn.Module):
    """Adds sines of row and column to ``[B, d_hid, H, W]``, each weighted per channel by a gate of the mean feature.

    Args:
        n_height, n_width: largest map.

    Raises:
        ValueError: the map is larger.
    """

    h_position_encoder: Tensor
    w_position_encoder: Tensor

    def __init__(self, d_hid: int = 512, n_height: int = 100, n_width: int = 100, dropout: float = 0.1):
        super().__init__()
        self.register_buffer("h_position_encoder", sine_table(n_height, d_hid)[None, :, :, None])
        self.register_buffer("w_position_encoder", sine_table(n_width, d_hid)[None, :, None, :])
        self.h_scale = self._gate(d_hid)
        self.w_scale = self._gate(d_hid)
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def _gate(dim: int) -> nn.Sequential:
        convs = nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 1)
        for conv in convs:
            nn.init.xavier_normal_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        return nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        rows, columns = self.h_position_encoder, self.w_position_encoder
        if h > rows.shape[2] or w > columns.shape[3]:
            raise ConfigError(
                f"the feature map is {h}x{w}, larger than the position table {rows.shape[2]}x{columns.shape[3]}: "
                "raise Encoder.n_position."
            )
        mean = F.adaptive_avg_pool2d(x, 1)
        code = self.h_scale(mean) * rows[:, :, :h] + self.w_scale(mean) * columns[..., :w]
        return self.dropout(x + code.to(x.dtype))


class LocalityAwareFeedforward(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolution on ``[B, d_in, H, W]``, each with BatchNorm and ReLU, the last one too."""

    def __init__(self, d_in: int, d_hid: int):
        super().__init__()
        self.conv1 = ConvBN(d_in, d_hid, 1)
        self.depthwise_conv = ConvBN(d_hid, d_hid, 3, groups=d_hid)
        self.conv2 = ConvBN(d_hid, d_in, 1)
        for part in (self.conv1, self.depthwise_conv, self.conv2):
            nn.init.xavier_normal_(part.conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.depthwise_conv(self.conv1(x)))


class MultiHeadAttention(nn.Module):
    """Self-attention over ``[B, N, d_model]`` with heads of ``d_k`` (queries, keys) and ``d_v`` (values) channels."""

    def __init__(self, n_head: int, d_model: int, d_k: int, d_v: int, dropout: float = 0.1, qkv_bias: bool = False):
        super().__init__()
        self.n_head, self.dropout = n_head, dropout
        self.linear_q = Linear(d_model, n_head * d_k, bias=qkv_bias)
        self.linear_k = Linear(d_model, n_head * d_k, bias=qkv_bias)
        self.linear_v = Linear(d_model, n_head * d_v, bias=qkv_bias)
        self.fc = Linear(n_head * d_v, d_model, bias=qkv_bias)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``mask``: keys to look at, bool [B, N], or for each query [B, N, N]."""
        q, k, v = (
            layer(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # [B, heads, N, d]
            for layer in (self.linear_q, self.linear_k, self.linear_v)
        )
        visible = None
        if mask is not None:
            visible = mask[:, None] if mask.ndim == 3 else mask[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        if recording(self):
            tell_attention(self, q, k, q.shape[-1] ** -0.5, visible)
        heads = dot_product_attention(q, k, v, mask=visible, dropout_p=self.dropout if self.training else 0.0)
        return self.proj_drop(self.fc(heads.transpose(1, 2).flatten(2)))


class SATRNEncoderLayer(nn.Module):
    """Attention, then the locality-aware feed-forward, both pre-norm and residual; ``[B, H*W, d_model]``, row-major."""

    def __init__(
        self,
        d_model: int = 512,
        d_inner: int = 512,
        n_head: int = 8,
        d_k: int = 64,
        d_v: int = 64,
        dropout: float = 0.1,
        qkv_bias: bool = False,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = MultiHeadAttention(n_head, d_model, d_k, d_v, dropout, qkv_bias)
        self.norm2 = nn.LayerNorm(d_model)
        self.feed_forward = LocalityAwareFeedforward(d_model, d_inner)

    def forward(self, x: Tensor, h: int, w: int, mask: Tensor | None = None) -> Tensor:
        """``mask``: keys to look at, nonzero in [B, H*W]."""
        x = x + self.attn(self.norm1(x), None if mask is None else mask.bool())
        return x + flatten_map(self.feed_forward(unflatten_map(self.norm2(x), (h, w))))


class SATRNEncoder(nn.Module):
    """Image ``[B, 3, H, W]`` -> tokens ``[B, H/4 * W/4, d_model]``, row by row.

    Args:
        max_sz: largest image (height, width); only checked against ``n_position``.
        stem: 'shallow', 'pope', 'resnet45'; 'none' takes a map of ``d_model`` channels.
        d_model, n_layers, n_head, d_inner: width, layers, heads, inner width of the feed-forward.
        d_k, d_v: channels of a head; None: ``d_model / n_head``.
        n_position: most rows and columns of the map.
        feat2d: give the map ``[B, d_model, H/4, W/4]`` instead.

    Raises:
        ConfigError: ``d_model`` cannot be split into the heads, ``max_sz`` needs more positions.
    """

    key_aliases = {"num_heads": "n_head", "depth": "n_layers"}

    @staticmethod
    def largest_image(arguments: Mapping[str, Any]) -> tuple[int, int]:
        """(height, width) px of the largest image that the position tables hold."""
        side = 4 * int(arguments.get("n_position", 100))
        return side, side

    @staticmethod
    def map_of(arguments: Mapping[str, Any], image: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the map that an image (height, width) px leaves."""
        return map_size(image, arguments.get("stem", "shallow"))

    def __init__(
        self,
        in_channels: int = 3,
        max_sz: Sequence[int] = (32, 128),
        stem: str = "shallow",
        d_model: int = 512,
        n_layers: int = 12,
        n_head: int = 8,
        d_inner: int = 2048,
        d_k: int | None = None,
        d_v: int | None = None,
        n_position: int = 100,
        dropout: float = 0.1,
        feat2d: bool = False,
    ):
        super().__init__()
        if (d_k is None or d_v is None) and d_model % n_head:
            raise ConfigError(
                f"Encoder.d_model: {d_model} cannot be split into {n_head} heads of equal width. "
                "Set Encoder.n_head to a number that divides it."
            )
        need = 0 if stem == "none" else max(map_size(max_sz, stem))
        if need > n_position:
            raise ConfigError(
                f"Encoder.max_sz: an image of {max_sz[0]}x{max_sz[1]} needs {need} positions along one side, but "
                f"Encoder.n_position is {n_position}. Set Encoder.n_position: {need}."
            )
        self.feat2d, self.out_channels, self.out_rank = feat2d, d_model, 4 if feat2d else 3
        if stem != "none":
            self.stem = build_stem(stem, in_channels, d_model)
        self.position_enc = Adaptive2DPositionalEncoding(d_model, n_position, n_position, dropout)
        d_k, d_v = d_k or d_model // n_head, d_v or d_model // n_head
        self.layer_stack = nn.ModuleList(
            SATRNEncoderLayer(d_model, d_inner, n_head, d_k, d_v, dropout) for _ in range(n_layers)
        )
        self.layer_norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, valid_ratios: Sequence[Any] | None = None) -> Tensor:
        """``valid_ratios``: per image, the share of the width that holds the image; the columns behind it are not
        attended to. Numbers, or mmocr's mappings with the key ``valid_ratio``. Default: all of it.
        """
        x = self.position_enc(run_stem(self.stem, x) if hasattr(self, "stem") else x)
        h, w = x.shape[2:]
        mask = None if valid_ratios is None else _visible(valid_ratios, h, w, x.device)
        x = flatten_map(x)
        for layer in cast("list[SATRNEncoderLayer]", list(self.layer_stack)):
            x = layer(x, h, w, mask)
        x = self.layer_norm(x)
        if not self.feat2d and recording(self):  # the sequence alone does not tell its rows
            record(self.layer_stack, "feature", unflatten_map(x, (h, w)))
        return unflatten_map(x, (h, w)) if self.feat2d else x


def _visible(ratios: Sequence[Any], h: int, w: int, device: torch.device) -> Tensor:
    """Bool ``[B, H*W]``: built in 2-D, so that it hides the right columns and not the bottom rows."""
    numbers = [r.get("valid_ratio", 1.0) if isinstance(r, Mapping) else r for r in ratios]
    widths = torch.tensor([min(w, math.ceil(w * ratio)) for ratio in numbers], device=device)
    columns = torch.arange(w, device=device) < widths[:, None]  # [B, W]
    return columns[:, None].expand(-1, h, -1).flatten(1)
