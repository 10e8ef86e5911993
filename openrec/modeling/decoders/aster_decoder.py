"""ASTER's decoder: a GRU with additive attention over a sequence.

Shi et al., "ASTER: An Attentional Scene Text Recognizer with Flexible Rectification", TPAMI 2019; with ``seed`` the
semantic start of SEED (Qiao et al., CVPR 2020). Options and state-dict names are OpenOCR's (Topdu/OpenOCR,
Apache-2.0). The additive attention is that of the other recurrent decoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.decoders.rnn_attn import AdditiveAttention
from openrec.modeling.decoders.token_steps import greedy
from openrec.modeling.record import record, recording

SEMANTIC_DIM = 300  # of the word vectors that SEED predicts
TIME_STEP = 32


def _other_length(length: int, time_step: int) -> str:
    if length == time_step:
        return ""
    return f"sequences of {length}, but seed needs {time_step} tokens. Set Decoder.time_step: {length}."


class Embeder(nn.Module):
    """A sequence ``[B, T, C]`` of exactly ``time_step`` -> a word vector ``[B, 300]``."""

    def __init__(self, time_step: int, dim: int):
        super().__init__()
        self.time_step = time_step
        self.eEmbed = nn.Linear(time_step * dim, SEMANTIC_DIM)

    def forward(self, x: Tensor) -> Tensor:
        problem = _other_length(x.shape[1], self.time_step)
        if problem:
            raise ConfigError(f"ASTERDecoder: {problem}")
        return self.eEmbed(x.flatten(1))


class Unused(nn.Module):
    """Weights that a checkpoint holds and nothing reads: buffers, so that no optimizer or DDP waits for them."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.register_buffer("weight", layer.weight.detach())
        self.register_buffer("bias", layer.bias.detach())


class AttnRNNBlock(AdditiveAttention):
    """One step: look with the last state, then GRU on what was seen and the last character."""

    def __init__(self, feat_dim: int, hidden: int, attn_dim: int, embed_dim: int, classes: int):
        super().__init__(feat_dim, hidden, attn_dim, score_bias=True)
        self.gru = nn.GRU(embed_dim + feat_dim, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, keys: Tensor, h: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
        """Cells ``[B, L, C]``, keys, state ``[B, hidden]``, character -> state, attention ``[B, L]``."""
        weights = self.scores(keys, h.unsqueeze(1)).softmax(-1)  # [B, 1, L]
        z = (weights.to(x.dtype) @ x).squeeze(1)
        entering = torch.cat((word, z.to(word.dtype)), -1)
        h = torch.gru_cell(entering, h, *self.gru.all_weights[0]).to(h.dtype)  # one step, without nn.GRU's packing
        return h, weights.squeeze(1)


class ASTERDecoder(nn.Module):
    """Tokens ``[B, L, C]`` -> logits ``[B, 1 + longest, N + 1]`` in training, probabilities ``[B, T, N + 1]``.

    Args:
        out_channels: N + 3, the token table of ``ARLabelEncode``; the last two are never predicted.
        embedding_dim, hiddendim, attndim: widths of embedded characters, state, attention.
        max_len: longest text; at most ``max_len + 1`` steps are decoded.
        seed: start from a word vector predicted from all tokens, of which there must be ``time_step``; training
            then returns ``[word vectors [B, 300], logits]``. Otherwise the first state is 0.
    """

    needs = "seq"

    @staticmethod
    def map_problem(arguments: Mapping[str, Any], size: tuple[int, int]) -> str:
        """Why the rows of a map of ``size`` (height, width) cannot be read, and the repair."""
        if not arguments.get("seed"):
            return ""
        return _other_length(size[0] * size[1], arguments.get("time_step", TIME_STEP))

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int = 256,
        hiddendim: int = 256,
        attndim: int = 256,
        max_len: int = 25,
        seed: bool = False,
        time_step: int = TIME_STEP,
    ):
        super().__init__()
        self.max_len, self.hidden, self.bos = max_len, hiddendim, out_channels - 2
        self.embeder = Embeder(time_step, in_channels) if seed else None
        self.word_embedding = nn.Embedding(out_channels, embedding_dim, padding_idx=out_channels - 1)
        self.attn_rnn_block = AttnRNNBlock(in_channels, hiddendim, attndim, embedding_dim, out_channels - 2)
        start = nn.Linear(SEMANTIC_DIM, hiddendim)
        self.embed_fc: nn.Module = start if seed else Unused(start)

    def forward(self, x: Tensor, data: Sequence[Tensor] | None = None) -> Tensor | list[Tensor]:
        """``data`` (training): ``[label, length, ...]`` of ``ARLabelEncode``."""
        dtype = self.word_embedding.weight.dtype
        vector = None
        h = torch.zeros(x.shape[0], self.hidden, device=x.device, dtype=dtype)
        if self.embeder is not None:
            vector = self.embeder(x)
            h = self.embed_fc(vector).to(dtype)
        keys = self.attn_rnn_block.feat_embed(x)
        if not self.training:
            return self._read(x, keys, h)
        if data is None or len(data) < 2:
            raise ConfigError("ASTERDecoder: training needs label and length of ARLabelEncode in the batch (KeepKeys).")
        words = self.word_embedding(data[0][:, : 1 + int(data[1].max())])
        states, maps = [], []
        for t in range(words.shape[1]):
            h, weights = self.attn_rnn_block(x, keys, h, words[:, t])
            states.append(h)
            maps.append(weights)
        self._tell(maps)
        logits = self.attn_rnn_block.fc(torch.stack(states, 1))
        return logits if vector is None else [vector, logits]

    def _read(self, x: Tensor, keys: Tensor, h: Tensor) -> Tensor:
        first = torch.full((x.shape[0],), self.bos, device=x.device)
        maps: list[Tensor] = []

        def step(best: Tensor | None) -> Tensor:
            nonlocal h
            h, weights = self.attn_rnn_block(x, keys, h, self.word_embedding(first if best is None else best))
            if recording(self):
                maps.append(weights)
            return self.attn_rnn_block.fc(h)

        probabilities = greedy(step, self.max_len + 1)
        self._tell(maps)
        return probabilities

    def _tell(self, maps: list[Tensor]) -> None:
        if maps and recording(self):
            record(self, "attn", torch.stack(maps, 1))  # [B, T, L]
