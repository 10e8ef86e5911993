"""Blocks of detection transformers: attention, deformable attention and feed-forward, each with its identity.

Sources: Carion et al., "DETR"; Zhu et al., "Deformable DETR" (ICLR 2021); the division into blocks with an operation
order is detrex's (IDEA-Research/detrex, Apache-2.0). Tensors are batch first, ``[B, tokens, C]``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.decoders.true2d_decoder import ring_offsets
from openrec.modeling.layers import Linear, dot_product_attention, exact, guard
from openrec.modeling.record import record, recording
from openrec.ops import ms_deform_attn


class MultiheadAttention(nn.Module):
    """``identity + dropout(attention)``; positions are added to queries and keys, never to values.

    Key is the query and value the key where they are not given; identity is the query before its position is added.
    Without ``key_pos`` the keys get ``query_pos`` when it fits them.

    Args:
        attn_drop: dropout of the weights; proj_drop: of the result.
    """

    def __init__(self, embed_dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        if embed_dim % num_heads:
            raise ConfigError(f"MultiheadAttention: width {embed_dim} cannot be split into {num_heads} heads.")
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.q_proj, self.k_proj, self.v_proj = (Linear(embed_dim, embed_dim) for _ in range(3))
        self.out_proj = Linear(embed_dim, embed_dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """``attn_mask [Q, K]`` and ``key_padding_mask [B, K]``: True is blocked."""
        key = query if key is None else key
        value = key if value is None else value
        identity = query if identity is None else identity
        if key_pos is None and query_pos is not None and query_pos.shape == key.shape:
            key_pos = query_pos
        query = query if query_pos is None else query + query_pos
        key = key if key_pos is None else key + key_pos
        q, k, v = (self._split(layer(x)) for layer, x in zip(self._projections(), (query, key, value)))
        allowed = None if attn_mask is None else ~attn_mask
        if key_padding_mask is not None:
            free = ~key_padding_mask[:, None, None]
            allowed = free if allowed is None else allowed & free
        drop = self.attn_drop if self.training else 0.0
        out = dot_product_attention(q, k, v, mask=allowed, dropout_p=drop)
        return identity + self.proj_drop(self.out_proj(out.transpose(1, 2).flatten(2)))

    def _projections(self) -> tuple[nn.Module, ...]:
        return self.q_proj, self.k_proj, self.v_proj

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class MultiScaleDeformableAttention(nn.Module):
    """Every query reads a few points of every level around its reference; ``identity + dropout(result)``.

    Args:
        num_points: K, per head and level.
        dropout: of the result.

    Offsets start on a ring, weights equal. A reference with 2 numbers is a point, and offsets count in pixels; with 4
    it is a box (cx, cy, w, h), and an offset of K reaches its edge.
    """

    def __init__(
        self, embed_dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4, dropout: float = 0.1
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise ConfigError(f"MultiScaleDeformableAttention: width {embed_dim} is no multiple of {num_heads} heads.")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets, self.attention_weights = nn.Linear(embed_dim, 2 * samples), nn.Linear(embed_dim, samples)
        self.value_proj, self.output_proj = Linear(embed_dim, embed_dim), Linear(embed_dim, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self) -> None:
        """The start of Deformable DETR, protected against later visitors."""
        ring = ring_offsets(self.num_heads, self.num_points)[:, None].expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.flatten())
        for zero in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(zero)
        guard(*self.sampling_offsets.parameters(), *self.attention_weights.parameters(), decay=True)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Sequence[tuple[int, int]] = (),
    ) -> Tensor:
        """``value [B, S, C]``, the levels one behind the other; ``reference_points``: see ``attend``."""
        value = value if value is not None else key if key is not None else query
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if reference_points is None:
            raise ValueError("MultiScaleDeformableAttention: reference_points are missing")
        return identity + self.dropout(self.attend(query, reference_points, value, spatial_shapes, key_padding_mask))

    def attend(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: Sequence[tuple[int, int]] | Tensor,
        key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Without identity. ``reference_points [B, Q, levels, 2 or 4]``, or one for all levels ``[B, Q, 1, ...]``."""
        b, q, _ = query.shape
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask.bool().unsqueeze(-1), 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))
        heads = (b, q, self.num_heads, self.num_levels, self.num_points)
        offsets = exact(self.sampling_offsets, query).view(*heads, 2)
        weights = exact(self.attention_weights, query).view(*heads[:3], self.num_levels * self.num_points).softmax(-1)
        reference = reference_points.to(offsets.dtype)[:, :, None, :, None]
        point = reference[..., :2]
        if reference.shape[-1] == 4:
            loc = point + offsets * (reference[..., 2:] * (0.5 / self.num_points))
        else:
            loc = point + offsets / _sizes(offsets, spatial_shapes)
        if recording(self):
            record(self, "ref", reference_points[:, :, 0, :2])  # of the first level; the others' are the same place
            record(self, "loc", loc.transpose(1, 2).flatten(3, 4))
            record(self, "offset", (loc - point) * _sizes(offsets, spatial_shapes))
            record(self, "attn", weights.transpose(1, 2))
        out = ms_deform_attn(value, spatial_shapes, loc, weights.view(heads))
        return self.output_proj(out)


def _sizes(like: Tensor, shapes: Sequence[tuple[int, int]] | Tensor) -> Tensor:
    """Pixels of every level in x and y, beside offsets ``[B, Q, heads, levels, K, 2]``."""
    return like.new_tensor([[int(w), int(h)] for h, w in shapes]).view(1, 1, 1, -1, 1, 2)


class MSDeformAttn(MultiScaleDeformableAttention):
    """The same with Deformable DETR's names and call: no identity, no dropout."""

    def __init__(self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4):
        super().__init__(d_model, n_heads, n_levels, n_points, dropout=0.0)

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Tensor,
        input_level_start_index: Tensor | None = None,
        input_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """``input_level_start_index`` must follow from the shapes; anything else is refused."""
        shapes = [(int(h), int(w)) for h, w in input_spatial_shapes.tolist()]
        starts = [0, *itertools.accumulate(h * w for h, w in shapes)][:-1]
        if input_level_start_index is not None and input_level_start_index.tolist() != starts:
            raise ValueError(f"MSDeformAttn: expected levels that start at {starts}, got {input_level_start_index}")
        return self.attend(query, reference_points, input_flatten, shapes, input_padding_mask)


class FFN(nn.Module):
    """``num_fcs`` linear layers with ReLU between them, dropout after each, and the identity."""

    def __init__(self, embed_dim: int, feedforward_dim: int, num_fcs: int = 2, drop: float = 0.0):
        super().__init__()
        if num_fcs < 2:
            raise ConfigError(f"FFN.num_fcs: expected at least 2, got {num_fcs}.")
        layers: list[nn.Module] = []
        for i in range(num_fcs):
            last = i == num_fcs - 1
            layers.append(Linear(feedforward_dim if i else embed_dim, embed_dim if last else feedforward_dim))
            layers += [nn.Dropout(drop)] if last else [nn.ReLU(), nn.Dropout(drop)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, identity: Tensor | None = None) -> Tensor:
        return (x if identity is None else identity) + self.layers(x)


class TransformerLayer(nn.Module):
    """Attentions, norms and feed-forwards in the order of ``operation_order``.

    Args:
        attn: one attention per ``self_attn`` and ``cross_attn``, in that order; ffn, norm: one for each ``ffn`` and
            ``norm``. Of a module that stands alone every place gets a copy.
        operation_order: of ``self_attn``, ``cross_attn``, ``norm``, ``ffn``. It is pre-norm when it starts with a
            norm: then what is added is the stream before the norm, else the block's own input.

    Raises:
        ConfigError: unknown token, or not as many blocks as tokens.
    """

    def __init__(
        self,
        attn: nn.Module | Sequence[nn.Module],
        ffn: nn.Module | Sequence[nn.Module],
        norm: nn.Module | Sequence[nn.Module],
        operation_order: Sequence[str],
    ):
        super().__init__()
        order = tuple(operation_order)
        unknown = set(order) - {"self_attn", "cross_attn", "norm", "ffn"}
        if unknown or not order:
            raise ConfigError(f"operation_order: expected self_attn, cross_attn, norm, ffn; got {list(order)}.")
        self.order, self.pre_norm = order, order[0] == "norm"
        self.attentions = _blocks("attn", attn, order.count("self_attn") + order.count("cross_attn"))
        self.ffns = _blocks("ffn", ffn, order.count("ffn"))
        self.norms = _blocks("norm", norm, order.count("norm"))

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_masks: Sequence[Tensor | None] | None = None,
        query_key_padding_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        **sampling: Any,
    ) -> Tensor:
        """``key``, ``value`` (the key where it is not given) and ``key_pos`` are those of ``cross_attn``.

        Args:
            attn_masks: ``[Q, K]`` or None for each attention in turn, True is blocked; deformable ones take none.
            query_key_padding_mask, key_padding_mask: ``[B, K]`` of ``self_attn`` and of ``cross_attn``.
            sampling: ``reference_points`` and ``spatial_shapes``, for deformable attention.
        """
        masks = [None] * len(self.attentions) if attn_masks is None else attn_masks
        if len(masks) != len(self.attentions):
            raise ValueError(f"TransformerLayer: expected {len(self.attentions)} attn_masks, got {len(masks)}")
        own = {"key_padding_mask": query_key_padding_mask}
        cross = {"key": key, "value": value, "key_pos": key_pos, "key_padding_mask": key_padding_mask}
        attentions, ffns, norms = iter(zip(self.attentions, masks)), iter(self.ffns), iter(self.norms)
        stream = query
        for token in self.order:
            if token == "norm":
                query = next(norms)(query)
                continue
            identity = stream if self.pre_norm else query
            if token == "ffn":
                query = next(ffns)(query, identity)
            else:
                block, mask = next(attentions)
                options = {**(own if token == "self_attn" else cross), "identity": identity, "query_pos": query_pos}
                if isinstance(block, MultiScaleDeformableAttention):
                    options.pop("key_pos", None)  # it reads values, at places of its own
                    query = block(query, **options, **sampling)
                else:
                    query = block(query, **options, attn_mask=mask)
            stream = query
        return query


def _blocks(name: str, given: nn.Module | Sequence[nn.Module], wanted: int) -> nn.ModuleList:
    """``wanted`` blocks: those given, or copies of the one given."""
    if isinstance(given, nn.Module) and not isinstance(given, nn.ModuleList):
        given = [_copied(given) for _ in range(wanted)]
    if len(given) != wanted:
        raise ConfigError(f"operation_order asks for {wanted} blocks of {name}, but there are {len(given)}.")
    return nn.ModuleList(given)


def _copied(block: nn.Module) -> nn.Module:
    """A copy that keeps what ``guard`` says of the parameters; ``deepcopy`` alone forgets it."""
    twin = copy.deepcopy(block)
    for parameter, own in zip(block.parameters(), twin.parameters()):
        vars(own).update(vars(parameter))
    return twin
