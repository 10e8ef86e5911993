"""Soft attention: each character sees a weighted mean of all cells of the map.

Xu et al., "Show, Attend and Tell", ICML 2015, on additive attention (Bahdanau et al., ICLR 2015). ``neigh`` is the
neighbourhood of SAR (Li et al., AAAI 2019), ``location`` the location features of Chorowski et al., NIPS 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.decoders.rnn_attn import AdditiveAttention, Look, RNNAttnDecoder, State, real_steps
from openrec.modeling.layers import flatten_map


class Memory(NamedTuple):
    """Of one batch."""

    cells: Tensor  # [B, H * W, C]
    keys: Tensor  # [B, H * W, attn_dim]
    size: tuple[int, int]  # (H, W)


class SoftRead(AdditiveAttention):
    """State -> weighted mean of the cells.

    Args:
        gate: scale what is seen by a sigmoid of the state (show-attend-tell's beta).
        glimpses: looks per step, each from the state plus what the one before saw.
        location: let the scores know where the text has been looked at so far.
        neigh: keys from a neighbourhood of ``neigh`` x ``neigh`` cells, odd; 1: from the cell alone.
    """

    def __init__(
        self,
        feat_dim: int,
        hidden: int,
        attn_dim: int,
        *,
        gate: bool = False,
        glimpses: int = 1,
        location: bool = False,
        neigh: int = 1,
    ):
        super().__init__(feat_dim, hidden, attn_dim)
        if neigh < 1 or neigh % 2 == 0 or glimpses < 1:
            raise ConfigError(f"SoftAttnDecoder: neigh must be odd and glimpses at least 1, got {neigh}, {glimpses}.")
        self.out_dim, self.glimpses = feat_dim, glimpses
        self.gate = nn.Linear(hidden, 1) if gate else None
        self.glimpse_embed = nn.Linear(feat_dim, hidden) if glimpses > 1 else None
        self.location = nn.Conv2d(1, attn_dim, 5, padding=2, bias=False) if location else None
        self.neighbours = nn.Conv2d(feat_dim, attn_dim, neigh, padding=neigh // 2, bias=False) if neigh > 1 else None

    def memory(self, x: Tensor) -> Memory:
        """What is the same at every step: the cells and their keys."""
        cells = flatten_map(x)
        keys = self.feat_embed(cells)
        if self.neighbours is not None:
            keys = keys + flatten_map(self.neighbours(x))
        return Memory(cells, keys, (x.shape[2], x.shape[3]))

    def weights(self, state: State, memory: Memory, h: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Attention ``[B, Q, H * W]``, float32."""
        return (self.logits(state, memory, h) / temperature).softmax(-1)

    def logits(self, state: State, memory: Memory, h: Tensor | None = None) -> Tensor:
        """Its scores."""
        extra = None
        if self.location is not None and state.seen is not None:
            where = self.location(state.seen.flatten(0, 1).unflatten(-1, memory.size).unsqueeze(1))
            extra = where.flatten(2).transpose(1, 2).unflatten(0, state.seen.shape[:2])  # [B, Q, H * W, A]
        return self.scores(memory.keys, state.h if h is None else h, extra)

    def forward(self, state: State, memory: Memory) -> Look:
        h = state.h
        weights = self.weights(state, memory)
        z = weights.to(memory.cells.dtype) @ memory.cells
        for _ in range(self.glimpses - 1):
            assert self.glimpse_embed is not None
            weights = self.weights(state, memory, h + self.glimpse_embed(z))
            z = weights.to(memory.cells.dtype) @ memory.cells
        return Look(self.gated(z, h), weights)

    def gated(self, z: Tensor, h: Tensor) -> Tensor:
        return z if self.gate is None else self.gate(h).sigmoid() * z


class SoftAttnDecoder(RNNAttnDecoder):
    """Show-attend-tell for words. Arguments: see ``RNNAttnDecoder``, ``SoftRead``, and

    Args:
        doubly_stochastic: weight of the penalty sum_i (1 - sum_t a_ti)^2 over the cells, mean over the batch, added
            to the loss. 0 for text: most cells are background and must not be looked at once.

    Training with a penalty returns ``{"logits", "penalty"}``, else logits.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int = 256,
        attn_dim: int = 256,
        embed_dim: int = 256,
        cell: str = "lstm",
        max_len: int = 25,
        init_state: str = "mean",
        deep_output: bool = True,
        pos2d: bool = True,
        dropout: float = 0.1,
        map_size: Sequence[int] = (8, 32),
        gate: bool = False,
        glimpses: int = 1,
        location: bool = False,
        neigh: int = 1,
        doubly_stochastic: float = 0.0,
    ):
        read = SoftRead(
            in_channels, hidden, attn_dim, gate=gate, glimpses=glimpses, location=location, neigh=neigh
        )  # fmt: skip
        super().__init__(
            read, in_channels, out_channels, hidden=hidden, embed_dim=embed_dim, cell=cell, max_len=max_len,
            init_state=init_state, deep_output=deep_output, pos2d=pos2d, dropout=dropout, map_size=map_size,
        )  # fmt: skip
        self.location, self.doubly_stochastic = location, doubly_stochastic

    def start(self, x: Tensor, readings: int = 1) -> State:
        state = super().start(x, readings)
        if not self.location:
            return state
        seen = torch.zeros(x.shape[0], readings, x.shape[2] * x.shape[3], device=x.device, dtype=torch.float32)
        return state._replace(seen=seen.to(torch.promote_types(x.dtype, torch.float32)))

    def teach(self, x: Tensor, tokens: Tensor) -> Any:
        steps = self.unroll(self.read.memory(x), self.start(x), tokens)  # type: ignore[operator]
        if not self.doubly_stochastic:
            return steps.logits[:, 0]
        weights = torch.stack([look.weights[:, 0] for look in steps.looks], 1)  # [B, T, H * W]
        seen = (weights * real_steps(tokens, self.bos).unsqueeze(-1)).sum(1)
        penalty = self.doubly_stochastic * (1 - seen).square().sum(-1).mean()
        return {"logits": steps.logits[:, 0], "penalty": penalty}
