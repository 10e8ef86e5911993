"""True 2-D self-attention: scores carry a learned bias for every displacement (dy, dx), over the map or in windows.

The bias table and the shifted windows follow Liu et al., "Swin Transformer", ICCV 2021, and Shaw et al.,
"Self-Attention with Relative Position Representations". As an encoder (``True2DEncoder``) and as a block of the SVTRv2
skeleton (``True2DBlock``, mixer ``True2D``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.encoders.satrn import Adaptive2DPositionalEncoding, LocalityAwareFeedforward
from openrec.modeling.encoders.stems import build_stem, map_size, run_stem
from openrec.modeling.encoders.svtrv2_blocks import Act, Size
from openrec.modeling.layers import (
    LayerNorm2d,
    Linear,
    Mlp,
    dot_product_attention,
    drop_path_rates,
    guard,
    init_free,
    maybe,
    tell_attention,
    trunc_normal_,
)
from openrec.modeling.layers import drop_path as stochastic_depth
from openrec.modeling.record import record, recording

CACHED_SIZES = 8  # index tables kept per module


class RelativePositionBias(nn.Module):
    """A learned number per head and displacement, gathered to ``[heads, N, N]`` for a map of N = h * w positions.

    Args:
        max_size: largest map (height, width). A smaller map has a subset of its displacements.

    Raises:
        ValueError: the map is larger.
    """

    def __init__(self, num_heads: int, max_size: Sequence[int]):
        super().__init__()
        self.max_size: Size = (int(max_size[0]), int(max_size[1]))
        h, w = self.max_size
        self.relative_position_bias_table = nn.Parameter(torch.zeros(num_heads, 2 * h - 1, 2 * w - 1))
        trunc_normal_(self.relative_position_bias_table)
        guard(self.relative_position_bias_table)
        self._cache: dict[tuple[int, int, torch.device], Tensor] = {}

    def index(self, h: int, w: int, device: torch.device | None = None) -> Tensor:
        """``[N, N]``: place in the flattened table of the displacement from key j to query i."""
        hm, wm = self.max_size
        if h > hm or w > wm:
            raise ConfigError(
                f"the feature map is {h}x{w}, larger than the table of relative positions, {hm}x{wm}: raise "
                "Encoder.max_sz to the largest image, or set a window_size."
            )
        y = torch.arange(h, device=device)[:, None].expand(h, w).flatten()
        x = torch.arange(w, device=device).expand(h, w).flatten()
        return (y[:, None] - y + hm - 1) * (2 * wm - 1) + (x[:, None] - x + wm - 1)

    def _cached(self, h: int, w: int, device: torch.device) -> Tensor:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.index(h, w, device)
        key = (h, w, device)
        if key not in self._cache:
            if len(self._cache) >= CACHED_SIZES:
                self._cache.clear()
            self._cache[key] = self.index(h, w, device)
        return self._cache[key]

    def forward(self, h: int, w: int) -> Tensor:
        table = self.relative_position_bias_table
        return F.embedding(self._cached(h, w, table.device), table.flatten(1).t()).permute(2, 0, 1)


class True2DAttention(nn.Module):
    """Multi-head self-attention with relative 2-D bias on a channels-last map ``[B, h, w, dim]``.

    Args:
        map_size: largest map (height, width); without windows it sizes the bias table.
        window_size: attend inside windows of that size, an int or (height, width); None: over the whole map. A side
            that is as long as the map is not cut.
        shift: move the windows by half their size, so that they cover the borders of unshifted ones.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        map_size: Sequence[int],
        window_size: int | Sequence[int] | None = None,
        shift: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"True2D: {dim} channels cannot be split into {num_heads} heads of equal width.")
        self.num_heads, self.window_size, self.shift = num_heads, window_pair(window_size), shift
        self.bias = RelativePositionBias(num_heads, self.window_size or map_size)
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        plan = Windows((h, w), self.window_size, self.shift)
        qkv = plan.cut(self.qkv(x)) if plan.cuts else self.qkv(x).view(b, 1, h * w, 3 * c)
        # [B, windows, n, 3, heads, c/heads] -> three of [B, windows * heads, n, c/heads]
        parts = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        mask = self.bias(*plan.size).to(parts.dtype).unsqueeze(0)
        visible = plan.visible(x.device)
        if visible is not None:
            mask = mask.masked_fill(~visible[:, None], -math.inf)  # [windows, heads, n, n]
        mask = mask.expand(plan.number, -1, -1, -1).flatten(0, 1).unsqueeze(0)
        q, k, v = parts
        if recording(self):
            self._tell(q, k, mask, plan)
        p = self.attn_drop.p if self.training else 0.0
        out = dot_product_attention(q, k, v, mask=mask, dropout_p=p)
        out = out.unflatten(1, (plan.number, self.num_heads)).transpose(2, 3).flatten(3)  # [B, windows, n, C]
        out = plan.join(out) if plan.cuts else out.view(b, h, w, c)
        return self.proj_drop(self.proj(out))

    @torch.no_grad()
    def _tell(self, q: Tensor, k: Tensor, mask: Tensor, plan: Windows) -> None:
        weights = tell_attention(self, q, k, q.shape[-1] ** -0.5, mask)  # [B, windows * heads, n, n]
        record(self, "table", self.bias.relative_position_bias_table[None])
        if plan.cuts:
            real = plan.cut(torch.ones(1, *plan.map, 1, device=q.device))  # padding asks, too
            looked = (weights.unflatten(1, (plan.number, -1)).mean(2) * real).sum(2)  # [B, windows, n]
            record(self, "looked", plan.join(looked.unsqueeze(-1)).squeeze(-1))


class Windows:
    """How a map is cut into windows. Of a size that an exporter leaves free, the cut that is right for every size.

    Attributes:
        size: (height, width) of a window; number: windows per map; cuts: False when one window holds the map.
    """

    def __init__(self, size: Size, window: Size | None, shift: bool):
        self.map = size
        self.size = size
        rows = columns = 1
        if window is not None:
            self.size = (torch.sym_min(window[0], size[0]), torch.sym_min(window[1], size[1]))
            rows, columns = ((m + s - 1) // s for m, s in zip(self.map, self.size))  # ONNX rounds -m // s up
        self.grid, self.number = (rows, columns), rows * columns
        self.padded = (rows * self.size[0], columns * self.size[1])
        # half a window where the map is larger than one
        self.roll = tuple(s // 2 * torch.sym_min(1, m // (s + 1)) if shift else 0 for m, s in zip(self.map, self.size))
        self.cuts = maybe(self.number - 1)

    def cut(self, x: Tensor) -> Tensor:
        """``[B, h, w, C] -> [B, windows, n, C]``: pad at the right and the bottom, roll, partition."""
        bottom, right = self.padded[0] - self.map[0], self.padded[1] - self.map[1]
        if maybe(bottom, right):
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        return self._partition(x)

    def _partition(self, x: Tensor) -> Tensor:
        x = _rolled(x, -self.roll[0], -self.roll[1])
        x = x.unflatten(2, (self.grid[1], self.size[1])).unflatten(1, (self.grid[0], self.size[0]))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """The inverse of ``cut``."""
        x = x.unflatten(2, self.size).unflatten(1, self.grid).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)  # [B, padded height, padded width, C]
        x = _rolled(x, *self.roll)
        return x.narrow(1, 0, self.map[0]).narrow(2, 0, self.map[1])  # a slice of all would vanish from a graph

    def visible(self, device: torch.device) -> Tensor | None:
        """Bool ``[windows, n (queries), n (keys)]``; None: every key of a window may be looked at.

        Padding is never looked at (except by padding, whose rows must not be empty), and what the roll brought
        together from opposite ends of the map stays apart.
        """
        if not maybe(self.padded[0] - self.map[0], self.padded[1] - self.map[1], *self.roll):
            return None
        # per axis: 0 on the map, 1 where the roll wrapped around; and whether a position is padding
        wrapped, real = [], []
        for length, size, shift in zip(self.padded, self.map, self.roll):
            position = torch.arange(length, device=device)
            wrapped.append((position < shift).long())
            real.append(position < size)
        region = 2 * wrapped[0][:, None] + wrapped[1]
        inside = real[0][:, None] & real[1]
        both = self._partition(torch.stack((region, inside.long()), -1).unsqueeze(0))[0]  # [windows, n, 2]
        region, inside = both[..., 0], both[..., 1].bool()
        same = region[:, :, None] == region[:, None, :]
        return same & (inside[:, None, :] | ~inside[:, :, None])


def _rolled(x: Tensor, down: int, right: int) -> Tensor:
    """``[B, h, w, C]``, moved around by so many positions."""
    for axis, number in ((1, down), (2, right)):
        if isinstance(number, torch.SymInt):  # ONNX rolls by constants only
            size = x.shape[axis]
            place = torch.arange(size, device=x.device) - number
            place = torch.where(place < 0, place + size, place)
            x = x.index_select(axis, torch.where(place < size, place, place - size))
        elif number:
            x = x.roll(number, axis)
    return x


def window_pair(window: int | Sequence[int] | None) -> Size | None:
    """(height, width) of a window given as an int or a pair.

    Raises:
        ConfigError: anything else, or a side below 1.
    """
    if window is None:
        return None
    pair = [window, window] if isinstance(window, int) else list(window)
    if len(pair) != 2 or min(pair) < 1:
        raise ConfigError(f"window_size must be an int, (height, width) or null, each at least 1, got {window}.")
    return int(pair[0]), int(pair[1])


class True2DBlock(nn.Module):
    """Pre-norm block on a map ``[B, dim, H, W]``: attention with relative 2-D bias, then a feed-forward part.

    Args:
        map_size: largest map (height, width).
        window_size, shift: see ``True2DAttention``. index: of the block among those of its stage with this mixer; then
            every second one shifts, as windows that all move alike would never mix.
        ffn: 'mlp', or 'locality' for SATRN's convolutions; d_inner: its inner width, None: ``mlp_ratio * dim``.
    """

    per_stage = ("window_size",)  # mixer_cfg may give one for each stage

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
        window_size: int | Sequence[int] | None = None,
        shift: bool = False,
        index: int | None = None,
        ffn: str = "mlp",
        d_inner: int | None = None,
    ):
        super().__init__()
        shift = shift and (index is None or index % 2 == 1)
        if ffn not in ("mlp", "locality"):
            raise ConfigError(f'True2D: ffn must be "mlp" or "locality", got "{ffn}".')
        inner = d_inner or int(dim * mlp_ratio)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = True2DAttention(dim, num_heads, map_size, window_size, shift, qkv_bias, attn_drop, drop)
        self.drop_path = stochastic_depth(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.local = ffn == "locality"
        mlp = LocalityAwareFeedforward(dim, inner) if self.local else Mlp(dim, inner, act_layer=act_layer, drop=drop)
        self.mlp: nn.Module = mlp

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # [B, H, W, dim], a view of channels-last memory
        x = x + self.drop_path(self.attn(self.norm1(x)))
        y = self.norm2(x)
        y = self.mlp(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if self.local else self.mlp(y)
        return (x + self.drop_path(y)).permute(0, 3, 1, 2)


class True2DEncoder(nn.Module):
    """Image ``[B, 3, H, W]`` -> map ``[B, d_model, H/4, W/4]``.

    Args:
        max_sz: largest image (height, width); sizes the bias tables where there are no windows.
        stem: 'shallow', 'pope', 'resnet45'; 'none' takes a map of ``d_model`` channels (``max_sz`` is then the map's).
        d_model, n_layers, n_head, d_inner: width, layers, heads, inner width of the feed-forward part.
        window_size: int, [height, width] or null (the whole map); text asks for tall windows such as [8, 8].
        shift_windows: every second layer moves its windows by half.
        abs_pos: add SATRN's position code first. The bias alone leaves no absolute position in the output, which a
            decoder with dense attention needs (``NRTRDecoder``).
        ffn: 'mlp' or SATRN's 'locality'.
        out_rank: 4 for the map, 3 for tokens ``[B, H/4 * W/4, d_model]``.
    """

    key_aliases = {"num_heads": "n_head", "depth": "n_layers"}

    @staticmethod
    def largest_image(arguments: Mapping[str, Any]) -> tuple[int, int] | None:
        """(height, width) px of the largest image that the position tables hold; None: there are none."""
        if arguments.get("window_size") is not None and not arguments.get("abs_pos"):
            return None
        height, width = arguments.get("max_sz", (32, 128))
        return height, width

    @staticmethod
    def map_of(arguments: Mapping[str, Any], image: Size) -> Size:
        """(height, width) of the map that an image (height, width) px leaves."""
        return map_size(image, arguments.get("stem", "shallow"))

    def __init__(
        self,
        in_channels: int = 3,
        max_sz: Sequence[int] = (32, 128),
        stem: str = "shallow",
        d_model: int = 512,
        n_layers: int = 6,
        n_head: int = 8,
        d_inner: int = 2048,
        dropout: float = 0.1,
        drop_path_rate: float = 0.0,
        window_size: int | Sequence[int] | None = None,
        shift_windows: bool = True,
        qkv_bias: bool = True,
        abs_pos: bool = False,
        ffn: str = "mlp",
        out_rank: int = 4,
        eps: float = 1e-6,
    ):
        super().__init__()
        if out_rank not in (3, 4):
            raise ConfigError(f"Encoder.out_rank must be 4 (map) or 3 (tokens), got {out_rank}.")
        if n_layers < 1:
            raise ConfigError(f"Encoder.n_layers must be at least 1, got {n_layers}.")
        if d_model % n_head:
            raise ConfigError(
                f"Encoder.n_head: {d_model} channels (Encoder.d_model) cannot be split into {n_head} heads of equal "
                "width. Set Encoder.n_head to a number that divides them."
            )
        size = map_size(max_sz, stem)
        self.out_channels, self.out_rank = d_model, out_rank
        if stem != "none":
            self.stem = build_stem(stem, in_channels, d_model)
        self.position_enc = Adaptive2DPositionalEncoding(d_model, *size, dropout=0.0) if abs_pos else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        options: dict[str, Any] = {
            "qkv_bias": qkv_bias, "drop": dropout, "attn_drop": dropout, "eps": eps, "window_size": window_size,
            "ffn": ffn, "d_inner": d_inner,
        }  # fmt: skip
        self.layers = nn.ModuleList(
            True2DBlock(d_model, n_head, size, drop_path=rate, shift=shift_windows and i % 2 == 1, **options)
            for i, rate in enumerate(drop_path_rates(drop_path_rate, [n_layers])[0])
        )
        self.norm = LayerNorm2d(d_model, eps=eps)
        self.layers.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.position_enc(run_stem(self.stem, x) if hasattr(self, "stem") else x))
        for layer in cast("list[True2DBlock]", list(self.layers)):
            x = layer(x)
        x = self.norm(x)
        if self.out_rank == 4:
            return x
        record(self.layers, "feature", x)  # the sequence alone does not tell its rows
        return x.flatten(2).transpose(1, 2)


def _init(module: nn.Module) -> None:
    """Truncated normal 0.02 for matrices, zero biases; convolutions keep what they were built with."""
    if isinstance(module, nn.Linear):
        if init_free(module.weight):
            trunc_normal_(module.weight)
        if init_free(module.bias):
            nn.init.zeros_(module.bias)
