"""SVTRv2 whose attention blocks give way to DA-Mamba's adaptive state-space blocks, block by block as the YAML says.

Sources: SVTRv2 (Topdu/OpenOCR, Apache-2.0) for stem, stages and transitions; DAMamba (ltzovo/DAMamba, no licence
file) for ``DASSMBlock``. Weights of either project load by name.

A scan sees the map in one raster direction: a pixel reads earlier rows and, in its own row, what lies before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from openrec.errors import ConfigError
from openrec.modeling.encoders.dassm import DASSM, ConvFFN, DASSMBlock, Dynamic_Adaptive_Scan, ResDWC
from openrec.modeling.encoders.svtrv2_blocks import ConvBlock, POPatchEmbed
from openrec.modeling.encoders.svtrv2_mixers import check_mixer_cfg, check_values
from openrec.modeling.encoders.svtrv2_plan import MIXERS, check_division, make_plan
from openrec.modeling.encoders.svtrv2_stage import BlockOptions, SVTRStage, SVTRv2Skeleton
from openrec.modeling.layers import LayerNorm2d
from openrec.ops._load import Backend
from openrec.registry import nearest, parameters, warn_once

__all__ = [
    "DASSM",
    "ConvBlock",
    "ConvFFN",
    "DASSMBlock",
    "Dynamic_Adaptive_Scan",
    "LayerNorm2d",
    "POPatchEmbed",
    "ResDWC",
    "SVTRStage",
    "SVTRv2Mamba",
]

MAMBA = ("Mamba", "FMamba")


class SVTRv2Mamba(SVTRv2Skeleton):
    """SVTRv2 encoder with convolution, attention and DA-Mamba blocks.

    Args:
        max_sz: largest image (height, width); sizes the position tables only (also those of 'True2D' and 'DAT').
        out_channels: width of the output with ``last_stage``; otherwise the features have ``dims[-1]`` channels.
        depths, dims: blocks and channels per stage.
        num_heads: per stage, attention heads and also groups of the convolution blocks; divides ``dims``.
        head_dim: channels that share a sampling offset in a Mamba block; divides ``dims`` where Mamba is used.
        mixer: per stage, a list of block names or a compact string ('Conv*4, Mamba*2'). 'FGlobal' flattens the 2-D
            map for 'Global'; every other mixer of ``svtrv2_plan.MIXERS`` keeps it. 'FMamba' is 'Mamba'.
        sub_k: stride (vertical, horizontal) of the transition after each stage; the last entry is unused.
        drop_rate, attn_drop_rate, last_drop: dropout; drop_path_rate: stochastic depth of the last block.
        last_stage: average the height, -> ``[B, W, out_channels]``. feat2d: return a map ``[B, C, H, W]``.
        eps: of the blocks' norms. final_norm: close the residual stream of a last Mamba block by a LayerNorm.
        num_convs, kernel_sizes: per block of a stage; a list of another length than the stage means 2 and 3. The
            default gives three convolutions to blocks 3-5 of a stage of six.
        d_state, d_conv, ssm_expand, dt_rank: state-space sizes of Mamba. das_init: its 'zero' offsets or
            'trunc_normal'. mamba_init: its 'svtr' or 'damamba' weights.
        scan_order: of every mixer that scans, 'row' or 'col'.
        op_backend: of their operators, 'auto', 'torch' or 'reference' (slow, for comparisons).
        mixer_cfg: further arguments by mixer, ``{Mamba: {layerscale: True}, DAT: {stride: [2, 2]}}``; those that a
            mixer lists in ``per_stage`` also as one value per stage, ``{DAT: {n_groups: [1, 2, 4]}}``.
    """

    @classmethod
    def largest_image(cls, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
        """(height, width) px of the largest image that the position tables hold; None: there are none."""
        options = arguments.get("mixer_cfg") or {}
        tables = [name for name in _mixer_names(arguments.get("mixer")) if _has_table(name, options.get(name) or {})]
        if not tables and not arguments.get("use_pos_embed", parameters(cls)["use_pos_embed"].default):
            return None
        height, width = arguments.get("max_sz", (32, 128))
        return height, width

    def __init__(
        self,
        max_sz: Sequence[int] = (32, 128),
        in_channels: int = 3,
        out_channels: int = 192,
        depths: Sequence[int] = (6, 6, 6),
        dims: Sequence[int] = (64, 128, 256),
        mixer: Sequence[str | Sequence[str]] = ("Conv*6", "Conv*2, Mamba*4", "Mamba*6"),
        use_pos_embed: bool = True,
        sub_k: Sequence[Sequence[int]] = ((1, 1), (2, 1), (1, 1)),
        num_heads: Sequence[int] = (2, 4, 8),
        head_dim: int = 16,
        mlp_ratio: float = 4,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        last_drop: float = 0.1,
        drop_path_rate: float = 0.1,
        last_stage: bool = False,
        feat2d: bool = False,
        eps: float = 1e-6,
        final_norm: bool = False,
        num_convs: Sequence[Sequence[int]] | None = None,
        kernel_sizes: Sequence[Sequence[int]] | None = None,
        pope_bias: bool = False,
        d_state: int = 1,
        d_conv: int = 3,
        ssm_expand: float = 1,
        dt_rank: int | Literal["auto"] = "auto",
        das_init: str = "zero",
        scan_order: str = "row",
        mamba_init: str = "svtr",
        op_backend: Backend = "auto",
        mixer_cfg: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        plan = make_plan(mixer, depths)
        if any("FMamba" in names for names in plan.mixers):
            warn_once("Encoder.mixer", "FMamba", 'Encoder.mixer: "FMamba" is another name of "Mamba"; write "Mamba".')
        extra, others = _split_mixer_cfg(mixer_cfg or {})
        with_mamba = [i for i, names in enumerate(plan.mixers) if set(names) & set(MAMBA)]
        width = extra.get("head_dim", head_dim)
        check_division([d if i in with_mamba else 0 for i, d in enumerate(dims)], [width] * len(dims), "head_dim")
        options = BlockOptions(
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            qk_scale=qk_scale,
            drop=drop_rate,
            attn_drop=attn_drop_rate,
            eps=eps,
            scan_order=scan_order,
            op_backend=op_backend,
            mamba={
                "head_dim": head_dim,
                "d_state": d_state,
                "d_conv": d_conv,
                "expand": ssm_expand,
                "dt_rank": dt_rank,
                "das_init": das_init,
                "mamba_init": mamba_init,
                **extra,
            },
            mixer_cfg=others,
        )
        super().__init__(
            plan,
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
            final_norm=final_norm,
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """SVTRv2's names and the scan's own: decay would pull ``A`` and ``D`` away from where they start."""
        return super().no_weight_decay() | {"A_logs", "token_mixer.Ds", "dt_projs_bias"}


def _split_mixer_cfg(
    mixer_cfg: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    """Arguments of ``DASSMBlock``, and by name those of the mixers that have a file of their own; both checked."""
    known = [name for name in parameters(DASSMBlock) if name not in ("dim", "drop_path")]
    extra: dict[str, Any] = {}
    others: dict[str, Mapping[str, Any]] = {}
    for mixer, arguments in mixer_cfg.items():
        if mixer in MIXERS and MIXERS[mixer].target:
            others[mixer] = arguments or {}
            continue
        if mixer not in MAMBA:
            takers = ", ".join(name for name in MIXERS if MIXERS[name].target)
            none = f" {mixer} takes none; only Mamba does, and {takers}."
            hint = nearest(mixer, MIXERS) if mixer not in MIXERS else none
            raise ConfigError(f"Encoder.mixer_cfg.{mixer}: no extra arguments for this mixer.{hint}")
        for key, value in arguments.items():
            if key not in known:
                raise ConfigError(f"Encoder.mixer_cfg.{mixer}.{key}: DASSMBlock has no such key.{nearest(key, known)}")
            extra[key] = value
        check_values(DASSMBlock, arguments, mixer)
    check_mixer_cfg(others, BlockOptions().offer())
    return extra, others


def _has_table(mixer: str, given: Mapping[str, Any]) -> bool:
    """Whether a block with the arguments ``given`` holds a table of positions for a largest map."""
    if mixer.startswith("True2D"):
        windows = given.get("window_size")
        return not windows or (isinstance(windows, Sequence) and None in windows)
    bounded = given.get("pe", "rpe") in ("rpe", "fixed") and given.get("use_rpb", True)
    return mixer == "DAT" and bounded and not given.get("no_off")


def _mixer_names(mixer: Any) -> set[str]:
    """Names in ``mixer`` as a config spells it, checked or not."""
    if isinstance(mixer, str):
        return set(re.findall(r"[A-Za-z]\w*", mixer))
    return set().union(*map(_mixer_names, mixer)) if isinstance(mixer, Sequence) else set()
