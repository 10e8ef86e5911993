"""Re-attention: learned mixing of the attention maps of all heads, so that deep blocks do not repeat one map.

Source: Zhou et al., "DeepViT: Towards Deeper Vision Transformer", arXiv 2103.11886. The mixing starts as the
identity here. BatchNorm takes the mean out of the maps, so that their rows no longer sum to one and the output grows
like the square root of the number of tokens; ``re_scale: seq`` takes that out again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.encoders.prenorm import PreNormBlock
from openrec.modeling.encoders.svtrv2_blocks import Act
from openrec.modeling.layers import Attention, guard
from openrec.modeling.record import record, recording

NORMS, SCALES = ("bn", "none"), ("one", "head", "seq")


class ReAttention(Attention):
    """``Attention`` whose softmax maps pass ``norm(theta * maps) * scale``; tokens or a map, ``[B, ..., dim]``.

    Args:
        re_norm: 'bn' (BatchNorm over the heads) or 'none'. The statistics of 'bn' depend on the size of the maps:
            training with several image sizes wants 'none'.
        re_scale: 'one', 'head' = (dim / num_heads) ** -0.5, 'seq' = N ** -0.5; None: 'seq' with 'bn', else 'one'.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        re_norm: str = "bn",
        re_scale: str | None = None,
    ):
        super().__init__(dim, num_heads, qkv_bias, qk_scale, attn_drop, proj_drop)
        if re_norm not in NORMS:
            raise ConfigError(f'ReAttn: re_norm must be "bn" or "none", got "{re_norm}".')
        self.re_scale = ("seq" if re_norm == "bn" else "one") if re_scale is None else re_scale
        if self.re_scale not in SCALES:
            raise ConfigError(f'ReAttn: re_scale must be "one", "head" or "seq", got "{re_scale}".')
        self.theta = nn.Conv2d(num_heads, num_heads, 1)
        with torch.no_grad():
            self.theta.weight.copy_(torch.eye(num_heads)[:, :, None, None])
            self.theta.bias.zero_()  # type: ignore[union-attr]
        guard(self.theta.weight, self.theta.bias)
        self.re_norm = nn.BatchNorm2d(num_heads) if re_norm == "bn" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shape, c = x.shape, x.shape[-1]
        x = x.reshape(shape[0], -1, c)
        n, width = x.shape[1], c // self.num_heads
        q, k, v = self.qkv(x).view(-1, n, 3, self.num_heads, width).permute(2, 0, 3, 1, 4)  # [B, heads, N, width]
        maps = F.softmax(q @ k.transpose(-1, -2) * self.scale, -1)
        record(self, "attn", maps)
        scale = {"one": 1.0, "head": width**-0.5, "seq": n**-0.5}[self.re_scale]
        maps = self.re_norm(self._mixed(maps.to(v.dtype))) * scale
        if recording(self):
            record(self, "mixed", maps)
            record(self, "mixing", self.theta.weight.flatten(1)[None])
        maps = self.attn_drop(maps)
        x = (maps.to(v.dtype) @ v).transpose(1, 2).reshape(shape)
        return self.proj_drop(self.proj(x))

    def _mixed(self, maps: Tensor) -> Tensor:
        """``theta`` as a matrix product: a convolution of so few channels is three times slower on a CPU."""
        mixed = self.theta.weight.flatten(1) @ maps.flatten(2) + self.theta.bias[:, None]  # type: ignore[index]
        return mixed.view_as(maps)


class ReAttnBlock(PreNormBlock):
    """Pre-norm block on a map ``[B, dim, H, W]`` with ``ReAttention`` over all positions."""

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
        drop_path: float = 0.0,
        act_layer: Act = nn.GELU,
        eps: float = 1e-6,
        re_norm: str = "bn",
        re_scale: str | None = None,
        layerscale: bool = False,
    ):
        attn = ReAttention(dim, num_heads, qkv_bias, qk_scale, attn_drop, drop, re_norm, re_scale)
        rest = {"mlp_ratio": mlp_ratio, "drop": drop, "drop_path": drop_path, "eps": eps, "layerscale": layerscale}
        super().__init__(dim, attn, act_layer=act_layer, **rest)  # type: ignore[arg-type]
