"""Deformable attention that moves one set of keys for all queries of a head group.

Source: Xia et al., "Vision Transformer with Deformable Attention", CVPR 2022, and "DAT++", arXiv 2309.01430
(LeapLabTHU/DAT, Apache-2.0), whose state-dict names are kept; its weights run unchanged in ``DAttentionBaseline``.
Positions are in pixels of the map throughout, so that maps of one row and of any size need no special division.

What differs from the original: by default the reference grid is the paper's (corner to corner; the published code's
is shifted by half a cell and leaves the map), and the offsets start at zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.encoders.prenorm import PreNormBlock
from openrec.modeling.encoders.svtrv2_blocks import Act, Size
from openrec.modeling.layers import (
    LayerNorm2d,
    as_vector,
    dot_product_attention,
    exact,
    guard,
    linear,
    maybe,
    tell_attention,
    trunc_normal_,
)
from openrec.modeling.record import record, recording
from openrec.ops import deform_sample

REFERENCES = ("corner", "center", "shifted")
POSITIONS = ("rpe", "log_cpb", "dwc", "fixed", "none")


class DATAttention(nn.Module):
    """Attention of every position to ``ceil(H / rh) * ceil(W / rw)`` sampled points; ``[B, H, W, dim]`` to the same.

    Args:
        n_groups: groups of channels (and of heads) that move their points on their own.
        stride: (vertical, horizontal) spacing of the points, or one number; ksize: kernel of the offset network.
        offset_range: a point moves at most ``offset_range / 2`` spacings; negative: freely, but never off the map.
        ref_mode: where points start: 'corner' spans the map from corner to corner, 'center' takes the centres of
            its cells, 'shifted' is the grid of DAT's published code.
        use_rpb: whether the scores know positions. pe: how: 'rpe' a table of displacements read bilinearly,
            'log_cpb' a small network of them, 'dwc' a depthwise convolution of the queries added to the output,
            'fixed' a table for one map size.
        rpb_size: largest map (height, width); sizes the table.
        no_off: average pooling instead of moved points, and no position term: an ablation of DAT's code.
    """

    published = False  # count points as a convolution does: none in a cut cell where ksize is the stride; any ksize

    def __init__(
        self,
        dim: int,
        num_heads: int,
        n_groups: int = 1,
        stride: int | Sequence[int] = (2, 2),
        ksize: int = 5,
        offset_range: float = 2.0,
        ref_mode: str = "corner",
        use_rpb: bool = True,
        rpb_size: Sequence[int] = (8, 32),
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        pe: str = "rpe",
        no_off: bool = False,
    ):
        super().__init__()
        self.stride = _pair(stride)
        _check(dim, num_heads, n_groups, self.stride, ksize, ref_mode, pe, self.published)
        self.num_heads, self.n_groups, self.ksize = num_heads, n_groups, ksize
        self.offset_range, self.ref_mode, self.no_off = offset_range, ref_mode, no_off
        self.pe, self.rpb_size = pe if use_rpb else "none", (int(rpb_size[0]), int(rpb_size[1]))
        self.scale = (dim // num_heads) ** -0.5
        width = dim // n_groups
        self.padding = tuple(0 if ksize == r else ksize // 2 for r in self.stride)
        self.conv_offset = nn.Sequential(
            nn.Conv2d(width, width, ksize, self.stride, cast(Size, self.padding), groups=width),
            LayerNorm2d(width, eps=1e-5),
            nn.GELU(),
            nn.Conv2d(width, 2, 1, bias=False),  # (dy, dx)
        )
        last = cast(nn.Conv2d, self.conv_offset[3])
        nn.init.zeros_(last.weight)
        guard(last.weight, decay=True)
        self.proj_q, self.proj_k, self.proj_v = (nn.Conv2d(dim, dim, 1, bias=qkv_bias) for _ in range(3))
        self.proj_out = nn.Conv2d(dim, dim, 1)
        self.attn_drop, self.proj_drop = nn.Dropout(attn_drop), nn.Dropout(proj_drop)
        self._build_positions(dim)

    def _build_positions(self, dim: int) -> None:
        (h, w), (rh, rw) = self.rpb_size, self.stride
        if self.pe == "dwc":
            self.rpe_table: nn.Module | nn.Parameter = nn.Conv2d(dim, dim, 3, 1, 1, groups=dim)
        elif self.pe == "log_cpb":
            heads = self.num_heads // self.n_groups
            self.rpe_table = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, heads, bias=False))
        elif self.pe != "none":
            keys = -(-h // rh) * -(-w // rw)
            if self.published:
                keys = math.prod(
                    (n + 2 * p - self.ksize) // r + 1 for n, p, r in zip((h, w), self.padding, self.stride)
                )
            size = (2 * h - 1, 2 * w - 1) if self.pe == "rpe" else (h * w, keys)
            table = nn.Parameter(trunc_normal_(torch.zeros(self.num_heads, *size), std=0.01))
            guard(table)
            self.rpe_table = table

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)[0]

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Also the points and where they started: [B, groups, Hk, Wk, 2] and [Hk, Wk, 2], (y, x) in pixels."""
        b, h, w, c = x.shape
        q = _project(self.proj_q, x)
        points, reference = self.points(q)
        sampled = self._pooled(x) if self.no_off else self.sample(x, points)  # [B, Ns, C]
        k, v = (self._heads(_project(p, sampled)) for p in (self.proj_k, self.proj_v))
        queries = self._heads(q.reshape(b, h * w, c))
        bias = None if self.no_off else self.bias(points, (h, w))
        mask = None if bias is None else bias.to(queries.dtype)
        if recording(self):
            tell_attention(self, queries, k, self.scale, bias)
            if self.pe == "rpe":
                record(self, "table", cast(Tensor, self.rpe_table)[None])
        p = self.attn_drop.p if self.training else 0.0
        out = dot_product_attention(queries, k, v, mask=mask, dropout_p=p, scale=self.scale)
        out = out.transpose(1, 2).reshape(b, h, w, c)
        if self.pe == "dwc" and not self.no_off:
            out = out + cast(nn.Module, self.rpe_table)(q.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj_drop(_project(self.proj_out, out)), points, reference

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, heads, N, width]

    def _pooled(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), self.stride, self.stride, ceil_mode=not self.published)
        return pooled.flatten(2).transpose(1, 2)

    def points(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """From the queries [B, H, W, C]: the points [B, groups, Hk, Wk, 2] and the grid [Hk, Wk, 2] (y, x in px)."""
        b, h, w = q.shape[:3]
        maps = q.unflatten(-1, (self.n_groups, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)  # [B*groups, C/groups, H, W]
        cut = zip((h, w), self.stride, self.padding)
        bottom, right = (-n % r if k == 0 and not self.published else 0 for n, r, k in cut)
        offset = self.conv_offset(F.pad(maps, (0, right, 0, bottom)) if maybe(bottom, right) else maps)
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        hk, wk = offset.shape[2:]
        offset = offset.permute(0, 2, 3, 1).unflatten(0, (b, self.n_groups))
        rows, columns = (self._grid(n, k, offset) for n, k in ((h, hk), (w, wk)))
        reference = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
        spacing = as_vector(offset, self._spacing(h, hk), self._spacing(w, wk))
        if self.no_off:
            offset = torch.zeros_like(offset)
        elif self.offset_range >= 0:
            offset = offset.tanh() * (spacing * (0.5 * self.offset_range))
        else:  # free, in half maps: the units of the published code
            offset = offset * as_vector(offset, max(h - 1, 1) / 2, max(w - 1, 1) / 2)
        points = reference + offset
        if self.offset_range < 0:
            points = torch.minimum(points.clamp(min=0), as_vector(points, h - 1.0, w - 1.0))
        record(self, "ref", _normalised(reference, (h, w)).flatten(0, 1))
        record(self, "offset", (points - reference).flip(-1))
        return points, reference

    def _spacing(self, size: int, number: int) -> float:
        if self.ref_mode == "center":
            return size / number
        return (size - 1) / (number - 1) if number > 1 else float(size)

    def _grid(self, size: int, number: int, like: Tensor) -> Tensor:
        """Where ``number`` points start on an axis of ``size`` pixels."""
        steps = torch.arange(number, device=like.device, dtype=like.dtype)
        if self.ref_mode == "center":
            return (steps + 0.5) * (size / number) - 0.5
        if number == 1:
            return torch.full_like(steps, (size - 1) / 2)
        return (steps + (0.5 if self.ref_mode == "shifted" else 0.0)) * ((size - 1) / (number - 1))

    def sample(self, x: Tensor, points: Tensor) -> Tensor:
        """Read the map [B, H, W, C] at ``points``, group by group: [B, Hk * Wk, C]; zero outside."""
        value = x.permute(0, 3, 1, 2).unflatten(1, (self.n_groups, -1))
        loc = _normalised(points, (x.shape[1], x.shape[2])).flatten(2, 3).unsqueeze(3)  # [B, groups, Ns, 1, 2]
        record(self, "loc", loc)
        return deform_sample(value, loc).squeeze(-1).flatten(1, 2).transpose(1, 2)

    def bias(self, points: Tensor, size: Size) -> Tensor | None:
        """What the displacements add to the scores, [B or 1, heads, H * W, Ns]; None: nothing.

        Raises:
            ValueError: the map is larger than the table.
        """
        if self.pe in ("none", "dwc"):
            return None
        (h, w), (hm, wm) = size, self.rpb_size
        too_large = (h > hm or w > wm) if self.pe == "rpe" else self.pe == "fixed" and size != self.rpb_size
        if too_large:
            raise ConfigError(
                f"the feature map is {h}x{w}, but DAT's table of positions is for {'up to ' * (self.pe == 'rpe')}"
                f"{hm}x{wm}: set Encoder.max_sz to the (largest) image, or mixer_cfg.DAT.pe: log_cpb."
            )
        if self.pe == "fixed":
            return cast(Tensor, self.rpe_table).unsqueeze(0)
        y = torch.arange(h, device=points.device, dtype=points.dtype)[:, None].expand(h, w).flatten()
        x = torch.arange(w, device=points.device, dtype=points.dtype).repeat(h)
        queries = torch.stack((y, x), -1)[:, None]  # [N, 1, 2]
        displacement = queries - points.flatten(2, 3).unsqueeze(2)  # [B, groups, N, Ns, 2], pixels
        if self.pe == "log_cpb":
            d = displacement * as_vector(displacement, 8 / max(h - 1, 1), 8 / max(w - 1, 1))
            d = d.sign() * torch.log2(d.abs() + 1) / math.log2(8)
            first, _, last = cast(nn.Sequential, self.rpe_table)
            hidden = exact(cast(nn.Linear, first), d).relu()
            return exact(cast(nn.Linear, last), hidden).permute(0, 1, 4, 2, 3).flatten(1, 2)
        return self.read_table(displacement)

    def read_table(self, displacement: Tensor) -> Tensor:
        """The table at displacements [B, groups, N, Ns, 2] (dy, dx in pixels): [B, heads, N, Ns]."""
        table = cast(Tensor, self.rpe_table).unflatten(0, (self.n_groups, -1)).unsqueeze(0)
        hm, wm = self.rpb_size
        place = displacement + as_vector(displacement, hm - 1, wm - 1)
        loc = _normalised(place, (2 * hm - 1, 2 * wm - 1)).transpose(0, 1)  # one table for the whole batch
        out = deform_sample(table, loc.flatten(1, 3)[None, :, :, None])  # [1, groups, heads/groups, B * N * Ns, 1]
        return out[0, ..., 0].unflatten(-1, loc.shape[1:4]).permute(2, 0, 1, 3, 4).flatten(1, 2)


def _project(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of a channels-last tensor: its matrix product."""
    return linear(x, conv.weight.flatten(1), conv.bias)


def _normalised(points: Tensor, size: Size) -> Tensor:
    """(y, x) in pixels -> (x, y) in [0, 1], pixel ``i`` of ``n`` at ``(i + 0.5) / n``."""
    return ((points + 0.5) / as_vector(points, *size)).flip(-1)


def _pair(stride: int | Sequence[int]) -> Size:
    pair = [stride, stride] if isinstance(stride, int) else list(stride)
    if len(pair) != 2 or not all(isinstance(r, int) and r > 0 for r in pair):
        raise ConfigError(f"DAT: stride must be a positive int or (vertical, horizontal), got {stride}.")
    return pair[0], pair[1]


def _check(
    dim: int, heads: int, groups: int, stride: Size, ksize: int, ref_mode: str, pe: str, published: bool
) -> None:
    for name, value in (("n_groups", groups), ("ksize", ksize)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"DAT: {name} must be a positive int, or a list of one per stage, got {value!r}.")
    if dim % heads:
        raise ConfigError(f"DAT: {dim} channels cannot be split into {heads} heads of equal width.")
    shared = dim if published and pe not in ("rpe", "log_cpb") else heads
    if shared % groups:
        raise ConfigError(f"DAT: {heads} heads cannot be shared out to {groups} groups; let n_groups divide num_heads.")
    if ksize < max(stride) and not published:
        raise ConfigError(f"DAT: ksize {ksize} is smaller than the stride {stride}: pixels would go unseen.")
    if ksize % 2 == 0 and stride != (ksize, ksize) and not published:
        raise ConfigError(f"DAT: ksize must be odd or equal to both strides, got {ksize} with stride {stride}.")
    if ref_mode not in REFERENCES:
        raise ConfigError(f'DAT: ref_mode must be one of {", ".join(REFERENCES)}, got "{ref_mode}".')
    if pe not in POSITIONS:
        raise ConfigError(f'DAT: pe must be one of {", ".join(POSITIONS)}, got "{pe}".')


class DAttentionBaseline(DATAttention):
    """DAT's attention as its code publishes it: its constructor, weights and numbers, ``[B, C, H, W]``.

    Returns:
        the output, and points and reference grid [B, groups, Hk, Wk, 2] as (y, x) with -1 and 1 at the corner pixels.
    """

    published = True

    def __init__(
        self,
        q_size: Sequence[int],
        kv_size: Sequence[int],
        n_heads: int,
        n_head_channels: int,
        n_groups: int,
        attn_drop: float,
        proj_drop: float,
        stride: int,
        offset_range_factor: float,
        use_pe: bool,
        dwc_pe: bool,
        no_off: bool,
        fixed_pe: bool,
        ksize: int,
        log_cpb: bool,
    ):
        if tuple(q_size) != tuple(kv_size):
            raise ConfigError(f"DAttentionBaseline: queries and keys share one map, got {q_size} and {kv_size}.")
        pe = "dwc" if dwc_pe else "fixed" if fixed_pe else "log_cpb" if log_cpb else "rpe"
        super().__init__(
            n_heads * n_head_channels,
            n_heads,
            n_groups,
            stride,
            ksize,
            offset_range_factor,
            ref_mode="shifted",
            rpb_size=kv_size,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            pe=pe if use_pe and not no_off else "none",
            no_off=no_off,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        out, points, reference = self.attend(x.permute(0, 2, 3, 1))
        half = as_vector(points, max(x.shape[2] - 1, 1) / 2, max(x.shape[3] - 1, 1) / 2)
        return out.permute(0, 3, 1, 2), points / half - 1, (reference / half - 1).expand_as(points)


class DATBlock(PreNormBlock):
    """Pre-norm block on a map ``[B, dim, H, W]`` with deformable attention; arguments as in ``DATAttention``.

    Args:
        map_size: largest map (height, width).
        layerscale, lpu: as in ``PreNormBlock``; DAT++ uses both.
    """

    per_stage = ("n_groups", "stride", "ksize")

    def __init__(
        self,
        dim: int,
        num_heads: int,
        map_size: Sequence[int],
        *,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Act = nn.GELU,
        eps: float = 1e-6,
        n_groups: int = 1,
        stride: int | Sequence[int] = (2, 2),
        ksize: int = 5,
        offset_range: float = 2.0,
        ref_mode: str = "corner",
        use_rpb: bool = True,
        pe: str = "rpe",
        no_off: bool = False,
        layerscale: bool = False,
        lpu: bool = False,
    ):
        attn = DATAttention(
            dim, num_heads, n_groups, stride, ksize, offset_range, ref_mode, use_rpb, map_size, qkv_bias, attn_drop,
            drop, pe, no_off,
        )  # fmt: skip
        super().__init__(
            dim,
            attn,
            mlp_ratio=mlp_ratio,
            drop=drop,
            drop_path=drop_path,
            act_layer=act_layer,
            eps=eps,
            layerscale=layerscale,
            lpu=lpu,
        )
