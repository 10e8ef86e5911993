"""SVTRv2's encoder as OpenOCR ships it: grouped convolutions first, attention later.

Source: Du et al., "SVTRv2: CTC Beats Encoder-Decoder Models in Scene Text Recognition" (Topdu/OpenOCR, Apache-2.0).
Constructor arguments, state-dict names and numbers are OpenOCR's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from openrec.modeling.encoders.svtrv2_blocks import Act, Norm
from openrec.modeling.encoders.svtrv2_plan import MIXERS, make_plan
from openrec.modeling.encoders.svtrv2_stage import BlockOptions, SVTRv2Skeleton

CONV_AND_ATTENTION = {name: MIXERS[name] for name in ("Conv", "Global", "FGlobal", "FGlobalRe2D")}


class SVTRv2LNConvTwo33(SVTRv2Skeleton):
    """SVTRv2 encoder.

    Args:
        max_sz: largest image (height, width); sizes the position table only.
        out_channels: width of the output with ``last_stage``; otherwise the features have ``dims[-1]`` channels.
        depths, dims, num_heads: per stage; ``num_heads`` is also the number of groups of the convolutions.
        mixer: per stage, a list of 'Conv', 'Global', 'FGlobal', 'FGlobalRe2D' or a compact string
            ('Conv*2, FGlobal, Global*3').
        sub_k: stride (vertical, horizontal) of the transition after each stage; the last entry is unused.
        drop_rate, attn_drop_rate: dropout, which reaches the blocks here (in OpenOCR it was lost on the way).
        last_drop: dropout of the last stage; drop_path_rate: stochastic depth of the last block.
        last_stage: average the height, -> ``[B, W, out_channels]``. feat2d: return a map ``[B, C, H, W]``.
        num_convs, kernel_sizes: per block of a stage; a list of another length than the stage means 2 and 3.
        pope_bias: bias in the stem's convolutions.
    """

    def __init__(
        self,
        max_sz: Sequence[int] = (32, 128),
        in_channels: int = 3,
        out_channels: int = 192,
        depths: Sequence[int] = (3, 6, 3),
        dims: Sequence[int] = (64, 128, 256),
        mixer: Sequence[str | Sequence[str]] = ("Conv*3", "Conv*3, FGlobal, Global*2", "Global*3"),
        use_pos_embed: bool = True,
        sub_k: Sequence[Sequence[int]] = ((1, 1), (2, 1), (1, 1)),
        num_heads: Sequence[int] = (2, 4, 8),
        mlp_ratio: float = 4,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        last_drop: float = 0.1,
        drop_path_rate: float = 0.1,
        norm_layer: Norm = nn.LayerNorm,
        act: Act = nn.GELU,
        last_stage: bool = False,
        feat2d: bool = False,
        eps: float = 1e-6,
        num_convs: Sequence[Sequence[int]] | None = None,
        kernel_sizes: Sequence[Sequence[int]] | None = None,
        pope_bias: bool = False,
    ):
        options = BlockOptions(
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            drop=drop_rate,
            attn_drop=attn_drop_rate,
            norm_layer=norm_layer,
            act_layer=act,
            eps=eps,
        )
        super().__init__(
            make_plan(mixer, depths, CONV_AND_ATTENTION),
            options,
            max_sz=max_sz,
            in_channels=in_channels,
            out_channels=out_channels,
            depths=depths,
            dims=dims,
            num_heads=num_heads,
            sub_k=sub_k,
            use_pos_embed=use_pos_embed,
            pope_bias=pope_bias,
            drop_path_rate=drop_path_rate,
            last_stage=last_stage,
            last_drop=last_drop,
            feat2d=feat2d,
            num_convs=num_convs,
            kernel_sizes=kernel_sizes,
        )
