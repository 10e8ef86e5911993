"""The pre-norm transformer block around a mixer of maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openrec.modeling.encoders.dassm import ResDWC
from openrec.modeling.encoders.svtrv2_blocks import Act
from openrec.modeling.layers import Mlp, guard
from openrec.modeling.layers import drop_path as stochastic_depth


class PreNormBlock(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)), on a map ``[B, dim, H, W]``.

    Args:
        attn: channels-last map ``[B, H, W, dim]`` to the same.
        layerscale: scale both branches by learned factors that start at 1e-5.
        lpu: begin with x + depthwise convolution of x ("local perception unit" of DAT++).
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        *,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Act = nn.GELU,
        eps: float = 1e-6,
        layerscale: bool = False,
        lpu: bool = False,
    ):
        super().__init__()
        if lpu:
            self.lpu = ResDWC(dim)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = attn
        self.drop_path = stochastic_depth(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=drop)
        self.layerscale = layerscale
        if layerscale:
            self.layer_scale_1 = nn.Parameter(torch.full((dim,), 1e-5))
            self.layer_scale_2 = nn.Parameter(torch.full((dim,), 1e-5))
            guard(self.layer_scale_1, self.layer_scale_2)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "lpu"):
            x = self.lpu(x)
        x = x.permute(0, 2, 3, 1)  # [B, H, W, dim], a view of channels-last memory
        y = self.attn(self.norm1(x))
        x = x + self.drop_path(y * self.layer_scale_1 if self.layerscale else y)
        y = self.mlp(self.norm2(x))
        return (x + self.drop_path(y * self.layer_scale_2 if self.layerscale else y)).permute(0, 3, 1, 2)
