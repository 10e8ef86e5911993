"""NRTR: the transformer that reads one character after the other.

Sheng et al., "NRTR: A No-Recurrence Sequence-to-Sequence Model for Scene Text Recognition", ICDAR 2019; layers
of Vaswani et al., "Attention Is All You Need". Options and state-dict names are OpenOCR's
(https://github.com/Topdu/OpenOCR, Apache-2.0); ``norm_first`` is SATRN's order (Lee et al., CVPRW 2020).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.decoders.token_steps import TokenEmbedding, greedy
from openrec.modeling.layers import Linear, Mlp, dot_product_attention, tell_attention
from openrec.modeling.record import recording

MAX_POSITIONS = 5000


class PositionalEncoding(nn.Module):
    """Adds sines (even channels) and cosines (odd channels) of the position to ``[B, N, dim]``."""

    pe: Tensor

    def __init__(self, dim: int, dropout: float):
        super().__init__()
        position = torch.arange(MAX_POSITIONS).unsqueeze(1)
        angle = position * torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))  # [5000, ceil(dim / 2)]
        table = torch.stack((angle.sin(), angle.cos()), -1).flatten(1)[:, :dim]
        self.register_buffer("pe", table.unsqueeze(0))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        if start + x.shape[1] > MAX_POSITIONS:
            raise ValueError(f"NRTRDecoder: at most {MAX_POSITIONS} positions, got {start + x.shape[1]}")
        return self.dropout(x + self.pe[:, start : start + x.shape[1]])


class Heads(nn.Module):
    """Multi-head attention, to itself (``qkv``) or to a memory (``q``, ``kv``)."""

    def __init__(self, dim: int, num_heads: int, dropout: float, cross: bool = False):
        super().__init__()
        if dim % num_heads:
            raise ConfigError(
                f"Decoder.nhead: the encoder's {dim} channels cannot be split into {num_heads} heads of equal width. "
                "Set Decoder.nhead to a number that divides them."
            )
        self.num_heads, self.dropout = num_heads, dropout
        if cross:
            self.q = Linear(dim, dim)
            self.kv = Linear(dim, 2 * dim)
        else:
            self.qkv = Linear(dim, 3 * dim)
        self.out_proj = Linear(dim, dim)

    def split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """``[B, N, parts * dim]`` -> ``parts`` tensors ``[B, heads, N, dim / heads]``."""
        return tuple(p.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in x.chunk(parts, -1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
        p = self.dropout if self.training else 0.0
        heads = dot_product_attention(q, k, v, dropout_p=p, is_causal=causal)
        return self.out_proj(heads.transpose(1, 2).flatten(2))

    def to_itself(self, x: Tensor, causal: bool = False, past: list[Tensor] | None = None) -> Tensor:
        """``past``: keys and values of the positions before ``x``, extended in place."""
        q, k, v = self.split(self.qkv(x), 3)
        if past is not None:
            if past:
                k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
            past[:] = [k, v]
        return self.attend(q, k, v, causal)

    def to_memory(self, x: Tensor, memory: tuple[Tensor, ...]) -> Tensor:
        (q,), (k, v) = self.split(self.q(x), 1), memory
        if recording(self):
            tell_attention(self, q, k, q.shape[-1] ** -0.5)  # [B, heads, N, S]
        return self.attend(q, k, v)


class Layer(nn.Module):
    """Self-attention, attention to the image (decoder only) and a feed-forward part, each with its norm."""

    def __init__(
        self, dim: int, num_heads: int, attention_dropout: float, residual_dropout: float, cross: bool, norm_first: bool
    ):
        super().__init__()
        self.norm_first, self.cross = norm_first, cross
        self.self_attn = Heads(dim, num_heads, attention_dropout)
        self.norm1 = nn.LayerNorm(dim)
        if cross:
            self.cross_attn = Heads(dim, num_heads, attention_dropout, cross=True)
            self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, act_layer=nn.ReLU, drop=residual_dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(residual_dropout)

    def memory(self, image: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of the image tokens ``[B, S, dim]``, the same at every step."""
        return self.cross_attn.split(self.cross_attn.kv(image), 2)

    def forward(
        self,
        x: Tensor,
        memory: tuple[Tensor, ...] = (),
        causal: bool = False,
        past: list[Tensor] | None = None,
    ) -> Tensor:
        first = self.norm_first
        y = self.self_attn.to_itself(self.norm1(x) if first else x, causal, past)
        x = x + self.dropout(y)
        x = x if first else self.norm1(x)
        if self.cross:
            x = x + self.dropout(self.cross_attn.to_memory(self.norm2(x) if first else x, memory))
            x = x if first else self.norm2(x)
        return x + self.mlp(self.norm3(x)) if first else self.norm3(x + self.mlp(x))


class NRTRDecoder(nn.Module):
    """Tokens ``[B, S, C]`` -> logits ``[B, 1 + longest, N + 1]`` in training, probabilities ``[B, T, N + 1]``.

    Args:
        out_channels: N + 3, the token table of ``ARLabelEncode``; the last two are never predicted.
        nhead: None: in_channels // 32.
        num_encoder_layers: layers over the image tokens before decoding; 0: none, and no positions on them.
        max_len: most steps in evaluation.
        scale_embedding: multiply token embeddings by sqrt(C).
        norm_first: normalise before each part of a layer (and once at the end) instead of after it.
    """

    needs = "seq"
    ignored_keys = ("beam_size",)

    key_aliases = {"n_head": "nhead", "num_heads": "nhead", "n_layers": "num_decoder_layers"}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        nhead: int | None = None,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        max_len: int = 25,
        attention_dropout_rate: float = 0.0,
        residual_dropout_rate: float = 0.1,
        scale_embedding: bool = True,
        norm_first: bool = False,
    ):
        super().__init__()
        dim, heads = in_channels, nhead or max(in_channels // 32, 1)
        self.max_len, self.bos = max_len, out_channels - 2
        self.embedding = TokenEmbedding(out_channels, dim, padding_idx=0, scaled=scale_embedding)
        self.positional_encoding = PositionalEncoding(dim, residual_dropout_rate)
        rest = (dim, heads, attention_dropout_rate, residual_dropout_rate)
        self.encoder: nn.ModuleList | None = None
        if num_encoder_layers > 0:
            self.encoder = nn.ModuleList(Layer(*rest, False, norm_first) for _ in range(num_encoder_layers))
        self.decoder = nn.ModuleList(Layer(*rest, True, norm_first) for _ in range(num_decoder_layers))
        self.encoder_norm = nn.LayerNorm(dim) if norm_first and self.encoder is not None else nn.Identity()
        self.decoder_norm = nn.LayerNorm(dim) if norm_first else nn.Identity()
        self.tgt_word_prj = nn.Linear(dim, out_channels - 2, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, data: Sequence[Tensor] | None = None) -> Tensor:
        """``data`` (training): ``[label, length, ...]`` of ``ARLabelEncode``."""
        if self.encoder is not None:
            x = self.positional_encoding(x)
            for layer in self.encoder:
                x = layer(x)
            x = self.encoder_norm(x)
        memories = [layer.memory(x) for layer in cast("list[Layer]", list(self.decoder))]
        if not self.training:
            return self._read(x, memories)
        if data is None or len(data) < 2:
            raise ConfigError("NRTRDecoder: training needs label and length of ARLabelEncode in the batch (KeepKeys).")
        label = data[0][:, : 1 + int(data[1].max())]  # <s> and characters; the targets are one further
        y = self.positional_encoding(self.embedding(label))
        for layer, memory in zip(self.decoder, memories):
            y = layer(y, memory, causal=True)
        return self.tgt_word_prj(self.decoder_norm(y))

    def _read(self, x: Tensor, memories: Sequence[tuple[Tensor, ...]]) -> Tensor:
        past: list[list[Tensor]] = [[] for _ in memories]
        position = 0

        def step(best: Tensor | None) -> Tensor:
            nonlocal position
            token = x.new_full((x.shape[0],), self.bos, dtype=torch.long) if best is None else best
            y = self.positional_encoding(self.embedding(token.unsqueeze(1)), position)
            position += 1
            for layer, memory, before in zip(self.decoder, memories, past):
                y = layer(y, memory, past=before)
            return self.tgt_word_prj(self.decoder_norm(y))[:, 0]

        return greedy(step, self.max_len)
