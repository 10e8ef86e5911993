"""DAT as a recogniser's encoder: SVTRv2's skeleton with local and deformable attention in turn.

Source: Xia et al., "Vision Transformer with Deformable Attention", CVPR 2022: its stages alternate window attention
and deformable attention; the first stage is convolutional here, as text shows fine strokes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openrec.errors import ConfigError
from openrec.modeling.encoders.svtrv2_mamba import SVTRv2Mamba
from openrec.modeling.encoders.svtrv2_plan import Mixer, parse_mixers
from openrec.registry import with_defaults

LETTERS = {"C": "Conv", "D": "DAT", "L": "True2D", "M": "Mamba", "S": "True2DShifted"}


class DATEncoder(SVTRv2Mamba):
    """Image ``[B, 3, H, W]`` -> map ``[B, dims[-1], H', W']``.

    Args:
        stage_spec: per stage, the blocks as letters (a list or 'L, D*2'): C convolution, L window attention, S the
            same with shifted windows, D deformable attention, M DA-Mamba.
        n_groups, stride, ksize: per stage, of D; offset_range, ref_mode, use_rpb: of D, see ``dat.DATAttention``.
        window_size: per stage (height, width), of L and S.
        mixer_cfg: further arguments by letter or mixer. Other arguments as in ``SVTRv2Mamba``.
    """

    @classmethod
    def largest_image(cls, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
        given = with_defaults(cls, arguments)
        asked = {"mixer": read_letters(given["stage_spec"]), "mixer_cfg": _mixer_cfg(given)}
        return super().largest_image({**given, **asked})

    def __init__(
        self,
        max_sz: Sequence[int] = (32, 128),
        in_channels: int = 3,
        dims: Sequence[int] = (96, 192, 384),
        num_heads: Sequence[int] = (3, 6, 12),
        stage_spec: Sequence[str | Sequence[str]] = ("C*6", "L, D, L, D, L, D", "L, D, L, D, L, D"),
        n_groups: Sequence[int] = (1, 3, 6),
        stride: Sequence[Sequence[int]] = ((2, 2), (2, 2), (1, 2)),
        ksize: Sequence[int] = (5, 5, 3),
        offset_range: float = 2.0,
        ref_mode: str = "corner",
        use_rpb: bool = True,
        window_size: Sequence[Sequence[int]] = ((8, 8), (8, 8), (4, 8)),
        head_dim: int = 16,
        sub_k: Sequence[Sequence[int]] = ((1, 1), (2, 1), (1, 1)),
        mlp_ratio: float = 4,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        use_pos_embed: bool = False,
        feat2d: bool = True,
        final_norm: bool = True,
        eps: float = 1e-6,
        mixer_cfg: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        mixer = read_letters(stage_spec)
        for name, values in (
            ("n_groups", n_groups),
            ("stride", stride),
            ("ksize", ksize),
            ("window_size", window_size),
        ):
            if len(values) != len(mixer):
                raise ConfigError(f"Encoder.{name} must hold one value per stage ({len(mixer)}), got {values}.")
        own: dict[str, Any] = {"n_groups": n_groups, "stride": stride, "ksize": ksize, "window_size": window_size}
        own |= {"offset_range": offset_range, "ref_mode": ref_mode, "use_rpb": use_rpb, "mixer_cfg": mixer_cfg}
        super().__init__(
            max_sz,
            in_channels,
            depths=[len(stage) for stage in mixer],
            dims=dims,
            mixer=mixer,
            use_pos_embed=use_pos_embed,
            sub_k=sub_k,
            num_heads=num_heads,
            head_dim=head_dim,
            mlp_ratio=mlp_ratio,
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            drop_path_rate=drop_path_rate,
            feat2d=feat2d,
            eps=eps,
            final_norm=final_norm,
            mixer_cfg=_mixer_cfg(own),
        )


def _mixer_cfg(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The encoder's own arguments as those of its mixers, and what ``mixer_cfg`` adds."""
    of_dat = ("n_groups", "stride", "ksize", "offset_range", "ref_mode", "use_rpb")
    options: dict[str, dict[str, Any]] = {
        "DAT": {name: given[name] for name in of_dat},
        "True2D": {"window_size": given["window_size"]},
        "True2DShifted": {"window_size": given["window_size"]},
    }
    for name, arguments in (given["mixer_cfg"] or {}).items():
        name = LETTERS.get(name, name)
        options[name] = {**options.get(name, {}), **arguments}
    return options


def read_letters(stage_spec: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """``['C*2', 'L, D']`` -> mixers per stage.

    Raises:
        ConfigError: not a list of stages, or a letter that stands for nothing.
    """
    if isinstance(stage_spec, str):
        raise ConfigError(f"Encoder.stage_spec must hold one list or string per stage, got {stage_spec!r}.")
    known = dict.fromkeys(LETTERS, Mixer(4, 4))
    stages = [parse_mixers(stage, known, f"Encoder.stage_spec[{i}]") for i, stage in enumerate(stage_spec)]
    return [[LETTERS[letter] for letter in stage] for stage in stages]
