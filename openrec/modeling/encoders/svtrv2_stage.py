"""SVTRv2's skeleton: stem, stages of mixed blocks with transitions, optional output stages.

Source: SVTRv2 (Topdu/OpenOCR, Apache-2.0). ``SVTRv2LNConvTwo33`` and ``SVTRv2Mamba`` are this skeleton with
different mixers; see ``svtrv2_plan`` for which block may follow which.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.encoders.dassm import DASSMBlock
from openrec.modeling.encoders.svtrv2_blocks import (
    Act,
    Block,
    ConvBlock,
    Feat2D,
    FlattenBlockRe2D,
    FlattenTranspose,
    LastStage,
    Norm,
    POPatchEmbed,
    Size,
    SubSample1D,
    SubSample2D,
)
from openrec.modeling.encoders.svtrv2_mixers import build_mixer, map_sizes, stage_arguments
from openrec.modeling.encoders.svtrv2_plan import MIXERS, Plan, check_division, check_stages, per_block
from openrec.modeling.layers import LayerNorm2d, drop_path_rates, init_svtr, unflatten_map
from openrec.modeling.record import record, recording
from openrec.registry import with_defaults

logger = logging.getLogger("openrec")

NUM_CONVS = ((2, 2, 2), (2, 2, 2, 3, 3, 3), (3, 3, 3))
KERNEL_SIZES = ((3, 3, 3), (3,) * 6, (3, 3, 3))


@dataclass(frozen=True)
class BlockOptions:
    """What a block needs to know beside its mixer's name."""

    dim: int = 0
    num_heads: int = 1
    num_conv: int = 2
    kernel_size: int = 3
    drop_path_rate: float = 0.0
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    drop: float = 0.0
    attn_drop: float = 0.0
    norm_layer: Norm = nn.LayerNorm
    act_layer: Act = nn.GELU
    eps: float = 1e-6
    scan_order: str = "row"
    op_backend: str = "auto"
    mamba: Mapping[str, Any] = field(default_factory=dict)  # arguments of DASSMBlock
    map_size: Size = (8, 32)  # (height, width) of the map for the largest image
    index: int = 0  # place of the block among those of its stage with the same mixer
    mixer_cfg: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by mixer, of those with a target

    def common(self) -> dict[str, Any]:
        names = ("mlp_ratio", "drop", "drop_path_rate", "norm_layer", "act_layer", "eps")
        return {name: getattr(self, name) for name in names}

    def attention(self) -> dict[str, Any]:
        return {"qkv_bias": self.qkv_bias, "qk_scale": self.qk_scale, "attn_drop": self.attn_drop, **self.common()}

    def offer(self) -> dict[str, Any]:
        """What a mixer's constructor may ask for."""
        names = ("dim", "num_heads", "map_size", "mlp_ratio", "qkv_bias", "qk_scale", "drop", "attn_drop", "act_layer")
        own = {name: getattr(self, name) for name in (*names, "eps", "index", "scan_order", "op_backend")}
        return {**own, "drop_path": self.drop_path_rate}


def build_block(mixer: str, o: BlockOptions) -> list[nn.Module]:
    """The modules of one block; ``FGlobal`` is two of them, which shifts the numbers of the blocks after it."""
    if mixer == "Conv":
        return [ConvBlock(o.dim, o.num_heads, num_conv=o.num_conv, kernel_size=o.kernel_size, **o.common())]
    if mixer in ("Mamba", "FMamba"):
        names = ("mlp_ratio", "drop", "drop_path", "act_layer", "eps", "scan_order", "op_backend")
        offered = o.offer()
        return [DASSMBlock(o.dim, **{**{name: offered[name] for name in names}, **o.mamba})]
    if MIXERS[mixer].target:
        return [build_mixer(mixer, o.offer(), o.mixer_cfg.get(mixer, {}))]
    if mixer == "FGlobalRe2D":
        return [FlattenBlockRe2D(o.dim, o.num_heads, **o.attention())]
    attention = Block(o.dim, o.num_heads, **o.attention())
    return [FlattenTranspose(), attention] if mixer == "FGlobal" else [attention]


class SVTRStage(nn.Module):
    """Blocks of one resolution, then the transition to the next stage.

    Args:
        mixers: one name per block; blocks: one ``BlockOptions`` per block.
        out_dim: channels after the transition, ``None`` in the last stage, which has none.
        sub_k: stride (vertical, horizontal) of the transition; out_rank: rank of the features at the stage's end.
    """

    def __init__(
        self,
        mixers: Sequence[str],
        blocks: Sequence[BlockOptions],
        out_dim: int | None = None,
        sub_k: Sequence[int] = (2, 1),
        out_rank: int = 4,
    ):
        super().__init__()
        self.blocks = nn.Sequential(*(m for name, options in zip(mixers, blocks) for m in build_block(name, options)))
        self.downsample = None
        if out_dim is not None:
            transition = SubSample2D if out_rank == 4 else SubSample1D
            self.downsample = transition(blocks[0].dim, out_dim, sub_k)

    def forward(self, x: Tensor, size: Size) -> tuple[Tensor, Size]:
        x = self.blocks(x)
        if recording(self):
            record(self, "feature", x if x.ndim == 4 else unflatten_map(x, size))
        return (x, size) if self.downsample is None else self.downsample(x, size)


class SVTRv2Skeleton(nn.Module):
    """Image ``[B, 3, H, W]`` -> features; ``[B, S, 3, H, W]`` is read as ``B * S`` images.

    Attributes:
        out_channels: channels of the features; out_rank: 4 for ``[B, C, H, W]``, 3 for ``[B, N, C]``.
    """

    # YAML keys of the SVTRv2 family that its own code does not read either.
    ignored_keys = ("local_k",)

    @classmethod
    def map_of(cls, arguments: Mapping[str, Any], image: Size) -> Size:
        """(height, width) of the map that an image (height, width) px leaves; tokens of ``last_stage`` are one row."""
        given = with_defaults(cls, arguments)
        transitions = len(given["dims"]) - 1
        height, width = map_sizes(image, given["sub_k"], 1 + min(transitions, len(given["sub_k"])))[-1]
        return (1, width) if given.get("last_stage") else (height, width)

    def __init__(
        self,
        plan: Plan,
        options: BlockOptions,
        *,
        max_sz: Sequence[int],
        in_channels: int,
        out_channels: int,
        depths: Sequence[int],
        dims: Sequence[int],
        num_heads: Sequence[int],
        sub_k: Sequence[Sequence[int]],
        use_pos_embed: bool,
        pope_bias: bool,
        drop_path_rate: float,
        last_stage: bool,
        last_drop: float,
        feat2d: bool,
        num_convs: Sequence[Sequence[int]] | None,
        kernel_sizes: Sequence[Sequence[int]] | None,
        final_norm: bool = False,
    ):
        super().__init__()
        check_stages(depths, dims=dims, num_heads=num_heads)
        transitions = len(depths) - 1
        if len(sub_k) < transitions or any(side < 1 for stride in sub_k[:transitions] for side in stride):
            raise ConfigError(
                f"Encoder.sub_k: expected a stride of at least 1 for each of {transitions} transitions, got {sub_k}."
            )
        check_division(dims, num_heads, "num_heads")
        per_stage = self._block_options(plan, options, depths, dims, num_heads, drop_path_rate, num_convs, kernel_sizes)
        sizes = map_sizes(max_sz, sub_k, len(depths))
        for i, blocks in enumerate(per_stage):
            given = stage_arguments(options.mixer_cfg, i, len(depths))
            names = plan.mixers[i]
            per_stage[i] = [
                replace(o, map_size=sizes[i], index=names[:j].count(names[j]), mixer_cfg=given)
                for j, o in enumerate(blocks)
            ]
        table = (max_sz[0] // 4, max_sz[1] // 4)
        self.pope = POPatchEmbed(in_channels, table, dims[0], use_pos_embed, plan.first_rank == 3, pope_bias)
        self.stages = nn.ModuleList(
            SVTRStage(names, blocks, next_dim, stride, rank)
            for names, blocks, next_dim, stride, rank in zip(
                plan.mixers, per_stage, [*dims[1:], None], [*sub_k, (1, 1)], plan.ranks
            )
        )
        self.out_channels, self.out_rank = dims[-1], plan.ranks[-1]
        if final_norm and plan.pre_norm:
            self.final_norm = LayerNorm2d(dims[-1], eps=options.eps)
        if last_stage:
            self.stages.append(LastStage(dims[-1], out_channels, last_drop))
            self.out_channels, self.out_rank = out_channels, 3
        if feat2d:
            self.stages.append(Feat2D())
            self.out_rank = 4
        self.depth = len(depths)
        self.apply(init_svtr)

    @staticmethod
    def _block_options(plan, options, depths, dims, num_heads, drop_path_rate, num_convs, kernel_sizes):
        rates = drop_path_rates(drop_path_rate, depths)
        convs, unused_convs = per_block("num_convs", num_convs, NUM_CONVS, depths, 2)
        kernels, unused_kernels = per_block("kernel_sizes", kernel_sizes, KERNEL_SIZES, depths, 3)
        for name, unused, fill in (("num_convs", unused_convs, 2), ("kernel_sizes", unused_kernels, 3)):
            for i in unused:
                if "Conv" in plan.mixers[i]:
                    logger.warning(
                        "Encoder.%s[%d] is not as long as depths[%d] = %d, so every Conv block there uses %d.",
                        name, i, i, depths[i], fill,
                    )  # fmt: skip
        return [
            [
                replace(
                    options,
                    dim=dims[i],
                    num_heads=num_heads[i],
                    num_conv=convs[i][j],
                    kernel_size=kernels[i][j],
                    drop_path_rate=rates[i][j],
                )
                for j in range(depths[i])
            ]
            for i in range(len(depths))
        ]

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 5:
            x = x.flatten(0, 1)
        # Channels-last from the first pixel on: maps and tokens then share one layout, and no block copies.
        x, size = self.pope(x.contiguous(memory_format=torch.channels_last))
        for i, stage in enumerate(self.stages, 1):
            x, size = stage(x, size)
            if i == self.depth and hasattr(self, "final_norm"):
                x = self.final_norm(x)
        return x

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Parts of names that are not decayed: stem, transitions, position table (OpenOCR's three).

        They are matched as substrings, so ``pos_embed`` also covers ``DASSMBlock.pos_embed.conv``: an accident of
        naming that is kept, because the depthwise kernel is a position encoding too.
        """
        return {"patch_embed", "downsample", "pos_embed"}
