"""The frame of the decoders that read with a recurrent cell and look at the image before every character.

Xu et al., "Show, Attend and Tell", ICML 2015 (the state starts from the mean of the map, deep output); additive
attention is Bahdanau et al., ICLR 2015. A *read* turns the state into what is seen of the map: softly, at one cell,
or through a grid of Gaussians; those are the decoders ``SoftAttnDecoder``, ``HardAttnDecoder``, ``DRAWAttnDecoder``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.decoders.token_steps import EOS, greedy
from openrec.modeling.layers import guard, trunc_normal_
from openrec.modeling.record import record, recording
from openrec.registry import with_defaults


class State(NamedTuple):
    """Of ``Q`` readings of each of ``B`` images: a decoder that samples where it looks reads each image Q times."""

    h: Tensor  # [B, Q, hidden]
    c: Tensor | None  # the same, of an LSTM
    seen: Tensor | None = None  # [B, Q, H * W], the sum of the attention so far, where a read asks for it


class Look(NamedTuple):
    """What one step saw."""

    z: Tensor  # [B, Q, C]
    weights: Tensor  # [B, Q, H * W], each row sums to 1
    log_pi: Tensor | None = None  # [B, Q], log-probability of the sampled cell


class Steps(NamedTuple):
    """A whole text."""

    logits: Tensor  # [B, Q, T, classes]
    h: Tensor  # [B, Q, T, hidden], the states *before* each step
    looks: list[Look]


class AdditiveAttention(nn.Module):
    """Scores ``v tanh(W_f f + W_h h + b)`` of every cell; names and initialisation are OpenOCR's ASTER.

    Args:
        feat_dim: C. hidden: width of the state. attn_dim: inner width.
        score_bias: a bias after ``v``; it changes nothing, but ASTER's weights hold one.
    """

    def __init__(self, feat_dim: int, hidden: int, attn_dim: int, score_bias: bool = False):
        super().__init__()
        self.feat_embed = nn.Linear(feat_dim, attn_dim)
        self.hidden_embed = nn.Linear(hidden, attn_dim)
        self.attnfeat_embed = nn.Linear(attn_dim, 1, bias=score_bias)
        for layer in (self.hidden_embed, self.attnfeat_embed):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
            guard(layer.weight, layer.bias, decay=True)

    def scores(self, keys: Tensor, h: Tensor, extra: Tensor | None = None) -> Tensor:
        """``keys``: ``feat_embed`` of the cells ``[B, L, A]``; ``h``: ``[B, Q, hidden]`` -> ``[B, Q, L]``, float32."""
        query = self.hidden_embed(h).unsqueeze(2)
        inner = keys.unsqueeze(1) + query  # [B, Q, L, A]
        inner = inner if extra is None else inner + extra
        scores = self.attnfeat_embed(inner.tanh()).squeeze(-1)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))


class RNNAttnDecoder(nn.Module):
    """Map ``[B, C, H, W]`` -> logits ``[B, 1 + longest, N + 1]`` in training, probabilities ``[B, T, N + 1]``.

    Before every character the read looks at the map with the last state; the cell takes the last character and
    what was seen. One Python step per character of the longest text, none over the batch.

    Args:
        read: ``memory(x) -> Any``, what stays the same during a text, with ``size``, (H, W);
            ``read(state, memory) -> Look``; ``out_dim``, the width of what it sees.
        out_channels: N + 3, the token table of ``ARLabelEncode``; the last two are never predicted.
        hidden, embed_dim: widths of the state and of the embedded characters.
        cell: 'lstm' or 'gru'.
        max_len: longest text; at most ``max_len + 1`` steps are decoded, the last for the end token.
        init_state: 'mean': the first state comes from the mean of the map; 'zero'.
        deep_output: classes from the state, what was seen and the last character; else from the state alone.
        pos2d: add a learned position to every cell, for maps up to ``map_size`` (height, width).
        dropout: before the classes.

    Raises:
        ConfigError: unknown option; a map larger than the position table.
    """

    needs = "2d"

    @classmethod
    def map_problem(cls, arguments: Mapping[str, Any], size: tuple[int, int]) -> str:
        """Why no map of ``size`` (height, width) can be read with the ``arguments``, and the repair."""
        given = with_defaults(cls, arguments)
        return _beyond(size, given["map_size"]) if given["pos2d"] else ""

    def __init__(
        self,
        read: nn.Module,
        in_channels: int,
        out_channels: int,
        *,
        hidden: int,
        embed_dim: int,
        cell: str,
        max_len: int,
        init_state: str,
        deep_output: bool,
        pos2d: bool,
        dropout: float,
        map_size: Sequence[int],
    ):
        super().__init__()
        one_of(self, "cell", cell, ("lstm", "gru"))
        one_of(self, "init_state", init_state, ("mean", "zero"))
        self.hidden, self.max_len, self.bos = hidden, max_len, out_channels - 2
        self.classes = classes = out_channels - 2
        self.read = read
        seen: int = read.out_dim  # type: ignore[assignment]
        self.embedding = nn.Embedding(out_channels, embed_dim)
        nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)
        self.cell = (nn.LSTMCell if cell == "lstm" else nn.GRUCell)(embed_dim + seen, hidden)
        self.init_h = nn.Linear(in_channels, hidden) if init_state == "mean" else None
        self.init_c = nn.Linear(in_channels, hidden) if init_state == "mean" and cell == "lstm" else None
        self.pos_embed: Tensor | None = None
        if pos2d:
            self.pos_embed = nn.Parameter(trunc_normal_(torch.empty(1, in_channels, *map_size)))
            guard(self.pos_embed)
        self.out_state = nn.Linear(hidden, embed_dim) if deep_output else None
        self.out_seen = nn.Linear(seen, embed_dim, bias=False) if deep_output else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(embed_dim if deep_output else hidden, classes)

    @property
    def largest_map(self) -> tuple[int, int] | None:
        """(height, width) of the largest map that the position table holds; None: there is none."""
        return None if self.pos_embed is None else (self.pos_embed.shape[2], self.pos_embed.shape[3])

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed"} if self.pos_embed is not None else set()

    def forward(self, x: Tensor, data: Sequence[Tensor] | None = None) -> Any:
        """``data`` (training): ``[label, length, ...]`` of ``ARLabelEncode``."""
        x = self.place(x)
        if not self.training:
            return self.decode(x)
        return self.teach(x, self.taught(data))

    def teach(self, x: Tensor, tokens: Tensor) -> Any:
        """What training returns, for the positioned map and the true tokens ``[B, T]``, the first ``<s>``."""
        return self.unroll(self.read.memory(x), self.start(x), tokens).logits[:, 0]  # type: ignore[operator]

    def taught(self, data: Sequence[Tensor] | None) -> Tensor:
        """``<s>`` and the characters of the batch's longest text."""
        if data is None or len(data) < 2:
            name = type(self).__name__
            raise ConfigError(f"{name}: training needs label and length of ARLabelEncode in the batch (KeepKeys).")
        return data[0][:, : 1 + int(data[1].max())]

    # -- the recurrence ------------------------------------------------------------------------------

    def place(self, x: Tensor) -> Tensor:
        """The map with its positions."""
        if self.pos_embed is None:
            return x
        (h, w), table = x.shape[2:], self.pos_embed.shape[2:]
        problem = _beyond((h, w), table)
        if problem:
            raise ConfigError(f"{type(self).__name__}: {problem}")
        return x + self.pos_embed[:, :, :h, :w]

    def start(self, x: Tensor, readings: int = 1) -> State:
        """The state before the first step."""
        if self.init_h is None:
            h = x.new_zeros(x.shape[0], self.hidden)
            c = torch.zeros_like(h) if isinstance(self.cell, nn.LSTMCell) else None
        else:
            mean = x.mean((2, 3))
            h, c = self.init_h(mean).tanh(), None
            if self.init_c is not None:
                c = self.init_c(mean).tanh()
        dtype = self.embedding.weight.dtype  # also under autocast: the state adds up over the steps
        h = h.to(dtype).unsqueeze(1).expand(-1, readings, -1)
        return State(h, None if c is None else c.to(dtype).unsqueeze(1).expand(-1, readings, -1))

    def step(self, look: Look, state: State, word: Tensor) -> State:
        """Take in what was seen, and the character before it ``[B, embed_dim]``."""
        b, q, _ = look.z.shape
        entering = torch.cat((word.unsqueeze(1).expand(-1, q, -1), look.z.to(word.dtype)), -1).flatten(0, 1)
        h, c = state.h.reshape(b * q, -1), state.c
        if c is None:
            h = self.cell(entering, h)
        else:
            h, c = self.cell(entering, (h, c.reshape(b * q, -1)))
            c = c.view(b, q, -1).to(state.c.dtype)  # type: ignore[union-attr]
        seen = None if state.seen is None else state.seen + look.weights
        return State(h.view(b, q, -1).to(state.h.dtype), c, seen)

    def classify(self, h: Tensor, z: Tensor, word: Tensor) -> Tensor:
        """States ``[..., hidden]``, what was seen and the characters before -> logits ``[..., classes]``."""
        if self.out_state is None or self.out_seen is None:
            return self.classifier(self.dropout(h))
        return self.classifier(self.dropout((self.out_state(h) + self.out_seen(z) + word).tanh()))

    def unroll(
        self, memory: Any, state: State, tokens: Tensor, read: Callable[[State, Any], Look] | None = None
    ) -> Steps:
        """Read the known texts ``tokens [B, T]``."""
        read = read or self.read
        words = self.embedding(tokens)
        looks: list[Look] = []
        states = [state]
        for t in range(tokens.shape[1]):
            looks.append(read(states[-1], memory))
            states.append(self.step(looks[-1], states[-1], words[:, t]))
        h = torch.stack([s.h for s in states], 2)  # [B, Q, 1 + T, hidden]
        z = torch.stack([look.z for look in looks], 2)
        self.tell(looks, memory)
        return Steps(self.classify(h[:, :, 1:], z, words.unsqueeze(1)), h[:, :, :-1], looks)

    def decode(self, x: Tensor, read: Callable[[State, Any], Look] | None = None) -> Tensor:
        """Probabilities ``[B, T, classes]`` of the text that takes the best character at every step."""
        read = read or self.read
        memory, state = self.read.memory(x), self.start(x)  # type: ignore[operator]
        first = torch.full((x.shape[0],), self.bos, device=x.device)
        looks: list[Look] = []

        def step(best: Tensor | None) -> Tensor:
            nonlocal state
            word = self.embedding(first if best is None else best)
            look = read(state, memory)
            state = self.step(look, state, word)
            if recording(self):
                looks.append(look)
            return self.classify(state.h[:, 0], look.z[:, 0], word)

        probabilities = greedy(step, self.max_len + 1)
        self.tell(looks, memory)
        return probabilities

    def tell(self, looks: list[Look], memory: Any) -> None:
        """Where each character was looked for, ``attn [B, T, H, W]``, to a diagnosis."""
        if looks and recording(self):
            weights = torch.stack([look.weights[:, 0] for look in looks], 1)
            record(self, "attn", weights.unflatten(-1, memory.size))


def _beyond(size: Sequence[int], table: Sequence[int]) -> str:
    (h, w), (rows, columns) = size, table
    if h <= rows and w <= columns:
        return ""
    return (
        f"a map of {h}x{w} cells, but positions for {rows}x{columns}. "
        f"Set Decoder.map_size: [{max(h, rows)}, {max(w, columns)}], or Decoder.pos2d: False."
    )


def real_steps(tokens: Tensor, bos: int) -> Tensor:
    """Which steps ``[B, T]`` of the input ``tokens`` have a target: all after ``<s>`` or a character."""
    return (tokens != EOS) & (tokens <= bos)


def one_of(module: nn.Module, name: str, value: str, known: Sequence[str]) -> None:
    """Refuse an unknown option."""
    if value not in known:
        raise ConfigError(f'{type(module).__name__}: {name} "{value}" is none of {", ".join(known)}.')
