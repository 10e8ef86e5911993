"""What decoders that read one character after the other have in common."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

EOS = 0  # number of the end token, both as a class and as an input
CHECK_EVERY = 4  # steps between two looks at an accelerator's results: each look waits for it


class TokenEmbedding(nn.Module):
    """Token numbers ``[...]`` -> vectors ``[..., dim]``, times sqrt(dim) when ``scaled``."""

    def __init__(self, tokens: int, dim: int, padding_idx: int | None = None, scaled: bool = True):
        super().__init__()
        self.embedding = nn.Embedding(tokens, dim, padding_idx=padding_idx)
        self.scale = dim**0.5 if scaled else 1.0
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.embedding(ids) * self.scale


def greedy(step: Callable[[Tensor | None], Tensor], limit: int) -> Tensor:
    """Take the best class at every step until each row has ended, at most ``limit`` times.

    Args:
        step: the last step's classes ``[B]`` (``None`` at first) -> logits ``[B, classes]``.

    Returns:
        Probabilities ``[B, T, classes]``; T is the first step at which all rows have ended, or ``limit``. An exporter
        gets all ``limit`` steps: a graph cannot end early, and what follows an end token is no text.
    """
    whole = torch.compiler.is_exporting()
    probabilities: list[Tensor] = []
    ended: list[Tensor] = []
    best: Tensor | None = None
    for t in range(1, limit + 1):
        probabilities.append(step(best).softmax(-1))
        best = probabilities[-1].argmax(-1)
        ended.append(best == EOS if not ended else ended[-1] | (best == EOS))
        if not whole and (best.device.type == "cpu" or t % CHECK_EVERY == 0) and bool(ended[-1].all()):
            break
    if whole:
        return torch.stack(probabilities, 1)
    running = torch.stack(ended).all(1).logical_not().sum()  # steps after which some row was still open
    return torch.stack(probabilities[: int(running) + 1], 1)
