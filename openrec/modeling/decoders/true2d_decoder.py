"""True2D's decoder: every character looks at a few points of the map, around a point that it chooses.

Deformable attention is Zhu et al., "Deformable DETR", ICLR 2021 (fundamentalvision/Deformable-DETR, Apache-2.0), with
its start: offsets on a ring, uniform weights. Reading character by character, keys and values cached, is NRTR's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.decoders.nrtr_decoder import Heads, PositionalEncoding
from openrec.modeling.decoders.token_steps import TokenEmbedding, greedy
from openrec.modeling.layers import Linear, Mlp, as_vector, exact, guard, init_free
from openrec.modeling.record import record
from openrec.ops import deform_sample
from openrec.ops._checks import full_precision

REF_MODES = ("soft_argmax", "reading", "learned", "iterative")
REF_DIM = 32  # width of the scores that find a point in the map


def ring_offsets(num_heads: int, points: int, map_size: Sequence[int] | None = None) -> Tensor:
    """``[heads, points, 2]`` pixels (dx, dy): head m looks along 2 pi m / M, point k lies k + 1 pixels (max-norm) away.

    ``map_size`` (height, width): shrink each axis so that the farthest point is at most half the map away.
    """
    angle = torch.arange(num_heads, dtype=torch.float64) * (2 * math.pi / num_heads)
    direction = torch.stack((angle.cos(), angle.sin()), -1)
    direction /= direction.abs().amax(-1, keepdim=True)
    ring = direction[:, None] * torch.arange(1, points + 1, dtype=torch.float64)[:, None]
    if map_size is not None:
        height, width = map_size
        ring *= torch.tensor([min(1.0, width / (2 * points)), min(1.0, height / (2 * points))], dtype=torch.float64)
    return ring.float()


def pixel_centres(h: int, w: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``[h * w, 2]``: (x, y) in [0, 1] of every pixel, row by row."""
    y = (torch.arange(h, device=device, dtype=dtype) + 0.5) / h
    x = (torch.arange(w, device=device, dtype=dtype) + 0.5) / w
    return torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1).flatten(0, 1)


class Memory(NamedTuple):
    """What one layer keeps of the image while it decodes."""

    value: Tensor  # [B, heads, c, H, W]
    keys: Tensor | None  # [B, H * W, 32], of soft_argmax


class ReferencePoints(nn.Module):
    """Where each query looks, (x, y) in [0, 1]: queries ``[B, T, dim]`` -> ``[B, T, 2]``, float32.

    Args:
        mode: 'soft_argmax': mean position under a thin attention over the map; 'reading': a learned point per step,
            left to right at first, corrected by the query; 'learned': from the query alone, as in Deformable DETR;
            'refine': a step from the point of the layer before.
        steps: longest output, for 'reading'.
    """

    def __init__(self, dim: int, mode: str, steps: int):
        super().__init__()
        self.mode, self.steps = mode, steps
        if mode == "soft_argmax":
            self.ref_point_query = nn.Linear(dim, REF_DIM)
            self.ref_point_key = nn.Linear(dim, REF_DIM)
            for layer in (self.ref_point_query, self.ref_point_key):
                _xavier(layer)
        elif mode == "refine":
            self.ref_point_step = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 2))
            _xavier(self.ref_point_step[0])
            _zero(self.ref_point_step[2])
        else:
            self.reference_points = nn.Linear(dim, 2)
            (_zero if mode == "reading" else _xavier)(self.reference_points)
        if mode == "reading":
            x = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
            self.ref_point_prior = nn.Parameter(torch.stack((x.logit(), torch.zeros_like(x)), -1).float())
            guard(self.ref_point_prior)
        for parameter in self.parameters():
            guard(parameter, decay=not hasattr(self, "ref_point_prior") or parameter is not self.ref_point_prior)

    def keys(self, image: Tensor) -> Tensor | None:
        """Keys of the map ``[B, H * W, dim]``, the same at every step."""
        return exact(self.ref_point_key, image) if self.mode == "soft_argmax" else None

    def forward(self, query: Tensor, memory: Memory, start: int = 0, before: Tensor | None = None) -> Tensor:
        """``start``: step of the first query; ``before``: the points of the layer before, for 'refine'."""
        if self.mode == "soft_argmax":
            return self._soft_argmax(query, memory)
        if self.mode == "refine":
            assert before is not None
            hidden = exact(cast(nn.Linear, self.ref_point_step[0]), query).relu()
            step = exact(cast(nn.Linear, self.ref_point_step[2]), hidden)
            return (before.detach().to(step.dtype).logit(eps=1e-5) + step).sigmoid()
        point = exact(self.reference_points, query)
        if self.mode == "reading":
            if start + query.shape[1] > self.steps:
                raise ConfigError(
                    f"True2DDecoder: a text of {start + query.shape[1] - 1} characters, but ref_mode reading knows "
                    f"max_len {self.steps - 1}. Set Decoder.max_len to Global.max_text_length."
                )
            point = point + self.ref_point_prior[start : start + query.shape[1]]
        return point.sigmoid()

    def _soft_argmax(self, query: Tensor, memory: Memory) -> Tensor:
        assert memory.keys is not None
        h, w = memory.value.shape[-2:]
        q = exact(self.ref_point_query, query)
        with full_precision(query.device):
            weights = (q @ memory.keys.transpose(1, 2) * REF_DIM**-0.5).softmax(-1)  # [B, T, H * W]
            record(self, "attn", weights.unflatten(-1, (h, w)))
            return weights @ pixel_centres(h, w, weights.device, weights.dtype)


class DeformableCrossAttention2D(nn.Module):
    """Queries ``[B, T, dim]`` read ``n_points`` points per head of a map ``[B, dim, H, W]`` -> ``[B, T, dim]``.

    Args:
        ref_mode: see ``ReferencePoints``; steps: longest output.
        offset_init: 'ring' or 'zero'; ring_size: map (height, width) that the ring is made to fit, None: as it is.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        n_points: int = 4,
        ref_mode: str = "soft_argmax",
        steps: int = 26,
        offset_init: str = "ring",
        ring_size: Sequence[int] | None = None,
    ):
        super().__init__()
        self.num_heads, self.n_points = num_heads, n_points
        self.value_proj = Linear(dim, dim)
        self.sampling_offsets = nn.Linear(dim, num_heads * n_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * n_points)
        self.output_proj = Linear(dim, dim)
        self.reference = ReferencePoints(dim, ref_mode, steps)
        _xavier(self.value_proj)
        _xavier(self.output_proj)
        _zero(self.sampling_offsets)
        _zero(self.attention_weights)
        if offset_init == "ring":
            with torch.no_grad():
                self.sampling_offsets.bias.copy_(ring_offsets(num_heads, n_points, ring_size).flatten())
        for layer in (self.value_proj, self.sampling_offsets, self.attention_weights, self.output_proj):
            guard(layer.weight, layer.bias, decay=True)

    def memory(self, image: Tensor, size: tuple[int, int]) -> Memory:
        """What is the same at every step, of the image tokens ``[B, H * W, dim]``."""
        value = self.value_proj(image).unflatten(-1, (self.num_heads, -1)).permute(0, 2, 3, 1)
        # in the sampler's own layout, once and not at every step
        return Memory(value.contiguous().unflatten(-1, size), self.reference.keys(image))

    def forward(
        self, query: Tensor, memory: Memory, start: int = 0, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Also returns the reference points ``[B, T, 2]``."""
        reference = self.reference(query, memory, start, before)
        return self.sample(query, memory.value, reference), reference

    def sample(self, query: Tensor, value: Tensor, reference: Tensor) -> Tensor:
        """Read the points around ``reference``."""
        b, t, _ = query.shape
        h, w = value.shape[-2:]
        heads, points = self.num_heads, self.n_points
        offset = exact(self.sampling_offsets, query).view(b, t, heads, points, 2)  # pixels
        weight = exact(self.attention_weights, query).view(b, t, heads, points).softmax(-1)
        loc = reference[:, :, None, None] + offset / as_vector(offset, w, h)
        record(self, "ref", reference)
        if self.reference.mode == "learned":
            record(self, "ref_steps", reference)  # what the watch looks at: they may never move
        record(self, "offset", offset)
        record(self, "loc", loc.transpose(1, 2))
        record(self, "attn", weight.transpose(1, 2))
        out = deform_sample(value, loc.transpose(1, 2), weight.transpose(1, 2))  # [B, heads, c, T]
        return self.output_proj(out.permute(0, 3, 1, 2).flatten(2))


class True2DLayer(nn.Module):
    """Causal self-attention, deformable attention to the map, feed-forward; each residual, with a norm."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        d_inner: int,
        dropout: float,
        norm_first: bool,
        cross: DeformableCrossAttention2D,
    ):
        super().__init__()
        self.norm_first = norm_first
        self.self_attn = Heads(dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = cross
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, d_inner, drop=dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        memory: Memory,
        before: Tensor | None = None,
        past: list[Tensor] | None = None,
        start: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """``past``: keys and values of the tokens before ``x``; without it ``x`` is a whole text, read causally."""
        first = self.norm_first
        x = x + self.dropout(self.self_attn.to_itself(self.norm1(x) if first else x, past is None, past))
        x = x if first else self.norm1(x)
        read, point = self.cross_attn(self.norm2(x) if first else x, memory, start, before)
        x = x + self.dropout(read)
        x = x if first else self.norm2(x)
        x = x + self.mlp(self.norm3(x) if first else x)
        return (x if first else self.norm3(x)), point


class True2DDecoder(nn.Module):
    """Map ``[B, C, H, W]`` -> logits ``[B, 1 + longest, N + 1]`` in training, probabilities ``[B, T, N + 1]``.

    Args:
        out_channels: N + 3, the token table of ``ARLabelEncode``; the last two are never predicted.
        d_model: width, None: in_channels; otherwise a 1x1 convolution projects the map.
        d_inner: inner width of the feed-forward part, None: 4 * d_model.
        n_points: points per head and character.
        max_len: longest text; at most ``max_len + 1`` steps are decoded, the last for the end token.
        ref_mode: 'soft_argmax', 'reading', 'learned' (see ``ReferencePoints``), or 'iterative': soft_argmax in the
            first layer, then each layer moves the point of the one before. soft_argmax brings back one thin dense
            product: a read costs O(T * H * W * 32 + T * heads * n_points), the other modes' O(T * heads * n_points).
            The projections outweigh both: at 512 channels and an 8x32 map a layer's cross-attention costs about half
            of a dense one, not the ratio of points to cells.
        offset_init: 'ring' or 'zero'. ring_fit: shrink the ring so that no point starts more than half of a map of
            ``map_size`` (height, width) away from its reference point.
        norm_first: normalise before each part of a layer (and once at the end) instead of after it.

    Raises:
        ConfigError: unknown mode, or a width that cannot be split into the heads.
    """

    needs = "2d"
    key_aliases = {"enc_channels": "in_channels", "d_embedding": "d_model", "num_heads": "n_head"}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        n_layers: int = 6,
        d_model: int | None = None,
        n_head: int = 8,
        d_inner: int | None = None,
        n_points: int = 4,
        dropout: float = 0.1,
        max_len: int = 25,
        ref_mode: str = "soft_argmax",
        offset_init: str = "ring",
        ring_fit: bool = True,
        map_size: Sequence[int] = (8, 32),
        norm_first: bool = True,
    ):
        super().__init__()
        dim = d_model or in_channels
        _check(dim, n_head, ref_mode, offset_init)
        self.max_len, self.bos = max_len, out_channels - 2
        self.proj = nn.Conv2d(in_channels, dim, 1) if dim != in_channels else nn.Identity()
        self.embedding = TokenEmbedding(out_channels, dim, padding_idx=0)
        self.positional_encoding = PositionalEncoding(dim, dropout)
        self.layers = nn.ModuleList()
        for i in range(n_layers):
            mode = ref_mode if ref_mode != "iterative" else "refine" if i else "soft_argmax"
            ring_size = map_size if ring_fit else None
            cross = DeformableCrossAttention2D(dim, n_head, n_points, mode, max_len + 1, offset_init, ring_size)
            self.layers.append(True2DLayer(dim, n_head, d_inner or 4 * dim, dropout, norm_first, cross))
        self.norm = nn.LayerNorm(dim) if norm_first else nn.Identity()
        self.tgt_word_prj = nn.Linear(dim, out_channels - 2)
        for module in self.modules():
            if isinstance(module, nn.Linear) and init_free(module.weight):
                _xavier(module)

    def forward(self, x: Tensor, data: Sequence[Tensor] | None = None) -> Tensor:
        """``data`` (training): ``[label, length, ...]`` of ``ARLabelEncode``."""
        memories = self.memories(x)
        if not self.training:
            return self._read(x.shape[0], memories)
        if data is None or len(data) < 2:
            raise ConfigError("True2DDecoder: training needs label and length of ARLabelEncode (KeepKeys).")
        # <s> and characters; the targets are one further
        return self.logits(data[0][:, : 1 + int(data[1].max())], memories)

    def memories(self, x: Tensor) -> list[Memory]:
        """What each layer keeps of the map."""
        x = self.proj(x)
        tokens = x.flatten(2).transpose(1, 2)
        size = (x.shape[2], x.shape[3])
        return [layer.cross_attn.memory(tokens, size) for layer in self._layers]

    @property
    def _layers(self) -> list[True2DLayer]:
        return cast("list[True2DLayer]", list(self.layers))

    def logits(
        self, ids: Tensor, memories: Sequence[Memory], past: list[list[Tensor]] | None = None, start: int = 0
    ) -> Tensor:
        """Tokens ``[B, T]``, the first at position ``start`` -> logits ``[B, T, N + 1]`` of the tokens after them."""
        y, point = self.positional_encoding(self.embedding(ids), start), None
        for i, (layer, memory) in enumerate(zip(self._layers, memories)):
            y, point = layer(y, memory, point, None if past is None else past[i], start)
        return self.tgt_word_prj(self.norm(y))

    def _read(self, batch: int, memories: Sequence[Memory]) -> Tensor:
        past: list[list[Tensor]] = [[] for _ in memories]
        first = torch.full((batch,), self.bos, device=memories[0].value.device)
        position = 0

        def step(best: Tensor | None) -> Tensor:
            nonlocal position
            ids = (first if best is None else best).unsqueeze(1)
            position += 1
            return self.logits(ids, memories, past, position - 1)[:, 0]

        return greedy(step, self.max_len + 1)


def _check(dim: int, n_head: int, ref_mode: str, offset_init: str) -> None:
    if dim % n_head:
        raise ConfigError(
            f"True2DDecoder: d_model {dim} cannot be split into {n_head} heads of equal width. Set Decoder.n_head or "
            "Decoder.d_model."
        )
    if ref_mode not in REF_MODES:
        raise ConfigError(f'True2DDecoder: ref_mode "{ref_mode}" is none of {", ".join(REF_MODES)}.')
    if offset_init not in ("ring", "zero"):
        raise ConfigError(f'True2DDecoder: offset_init must be "ring" or "zero", got "{offset_init}".')


def _xavier(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Linear)
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _zero(layer: nn.Module) -> None:
    assert isinstance(layer, nn.Linear)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
