"""Blocks of SVTRv2: stem, attention and convolution blocks, transitions, output stages.

Source: Du et al., "SVTRv2: CTC Beats Encoder-Decoder Models in Scene Text Recognition" (Topdu/OpenOCR, Apache-2.0),
whose state-dict names are kept. Maps ``[B, C, H, W]`` are channels-last in memory throughout, so that turning a map
into tokens ``[B, H*W, C]`` and back costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.layers import (
    Attention,
    ConvBNLayer,
    Linear,
    Mlp,
    drop_path,
    flatten_map,
    trunc_normal_,
    unflatten_map,
)

Size = tuple[int, int]
Norm = Callable[..., nn.Module]
Act = Callable[[], nn.Module]


class FlattenTranspose(nn.Module):
    """``[B, C, H, W] -> [B, H*W, C]``, row by row; no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return flatten_map(x)


class Block(nn.Module):
    """Self-attention block on tokens ``[B, N, C]``; post-norm: each residual sum is normalised."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: Norm = nn.LayerNorm,
        act_layer: Act = nn.GELU,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim, eps=eps)
        self.mixer = Attention(dim, num_heads, qkv_bias, qk_scale, attn_drop=attn_drop, proj_drop=drop)
        self.drop_path = drop_path(drop_path_rate)
        self.norm2 = norm_layer(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.drop_path(self.mixer(x)))
        return self.norm2(x + self.drop_path(self.mlp(x)))


class FlattenBlockRe2D(Block):
    """The same block between map and map: flatten, attend, restore ``[B, C, H, W]``."""

    def forward(self, x: Tensor) -> Tensor:
        return unflatten_map(super().forward(flatten_map(x)), x.shape[2:])


class ConvBlock(nn.Module):
    """Convolution block on ``[B, C, H, W]``: a chain of grouped convolutions, then the MLP; post-norm.

    There is no norm or activation between the convolutions of the chain.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_conv: int = 2,
        kernel_size: int = 3,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: Norm = nn.LayerNorm,
        act_layer: Act = nn.GELU,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim, eps=eps)
        self.mixer = nn.Sequential(
            *(nn.Conv2d(dim, dim, kernel_size, 1, kernel_size // 2, groups=num_heads) for _ in range(num_conv))
        )
        self.drop_path = drop_path(drop_path_rate)
        self.norm2 = norm_layer(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        x = flatten_map(x + self.drop_path(self.mixer(x)))
        x = self.norm1(x)
        x = self.norm2(x + self.drop_path(self.mlp(x)))
        return unflatten_map(x, size)


class ADDPosEmbed(nn.Module):
    """Adds a learned position table ``[1, C, Hm, Wm]``, cropped to the map."""

    def __init__(self, feat_max_size: Sequence[int], dim: int):
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, *feat_max_size))
        trunc_normal_(self.pos_embed)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        if h > self.pos_embed.shape[2] or w > self.pos_embed.shape[3]:
            raise ConfigError(
                f"the feature map is {h}x{w}, larger than the position table {tuple(self.pos_embed.shape[2:])}: "
                "raise Encoder.max_sz to the largest image, or set Encoder.use_pos_embed: False."
            )
        return x + self.pos_embed[:, :, :h, :w]


class POPatchEmbed(nn.Module):
    """Stem: two 3x3 convolutions of stride 2 with BatchNorm and GELU; ``[B, 3, H, W] -> [B, C, H/4, W/4]``.

    Args:
        feat_max_size: size of the position table, used with ``use_pos_embed``.
        flatten: return tokens ``[B, N, C]``.

    Returns:
        features and the real size of the map, ``(ceil(ceil(H/2)/2), ...)``.
    """

    def __init__(
        self,
        in_channels: int = 3,
        feat_max_size: Sequence[int] = (8, 32),
        embed_dim: int = 768,
        use_pos_embed: bool = False,
        flatten: bool = False,
        bias: bool = False,
    ):
        super().__init__()
        self.patch_embed = nn.Sequential(
            ConvBNLayer(in_channels, embed_dim // 2, 3, 2, 1, bias=bias),
            ConvBNLayer(embed_dim // 2, embed_dim, 3, 2, 1, bias=bias),
        )
        if use_pos_embed:
            self.patch_embed.append(ADDPosEmbed(feat_max_size, embed_dim))
        if flatten:
            self.patch_embed.append(FlattenTranspose())

    def forward(self, x: Tensor) -> tuple[Tensor, Size]:
        h, w = ((n + 3) // 4 for n in x.shape[2:])  # two strides of 2, each rounded up
        return self.patch_embed(x), (h, w)


class SubSample2D(nn.Module):
    """Transition between stages, map to map: 3x3 convolution with ``stride``, LayerNorm over channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int] = (2, 1)):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, (stride[0], stride[1]), 1)
        self.norm = nn.LayerNorm(out_channels)

    def forward(self, x: Tensor, size: Size) -> tuple[Tensor, Size]:
        x = self.conv(x)
        size = (x.shape[2], x.shape[3])
        return unflatten_map(self.norm(flatten_map(x)), size), size


class SubSample1D(SubSample2D):
    """The same transition, tokens to tokens; ``size`` is the map that the tokens came from."""

    def forward(self, x: Tensor, size: Size) -> tuple[Tensor, Size]:
        x = self.conv(unflatten_map(x, size))
        return self.norm(flatten_map(x)), (x.shape[2], x.shape[3])


class LastStage(nn.Module):
    """Mean over the height, linear map without bias, hard-swish, dropout: -> ``[B, W, out_channels]``."""

    def __init__(self, in_channels: int, out_channels: int, last_drop: float):
        super().__init__()
        self.last_conv = Linear(in_channels, out_channels, bias=False)
        self.dropout = nn.Dropout(last_drop)

    def forward(self, x: Tensor, size: Size) -> tuple[Tensor, Size]:
        if x.ndim == 3:
            x = unflatten_map(x, size)
        x = x.mean(2).transpose(1, 2)  # [B, W, C]
        return self.dropout(F.hardswish(self.last_conv(x))), (1, size[1])


class Feat2D(nn.Module):
    """Tokens back to a map ``[B, C, H, W]``; a map passes unchanged."""

    def forward(self, x: Tensor, size: Size) -> tuple[Tensor, Size]:
        return (x if x.ndim == 4 else unflatten_map(x, size)), size
