"""Weights of a model for other characters: what it knew of those that both dictionaries hold stays."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn


def map_rows(
    decoder: nn.Module,
    layers: Collection[str],
    weights: Mapping[str, Tensor],
    theirs: Sequence[str],
    ours: Sequence[str],
    prefix: str = "",
    first: int = 0,
) -> dict[str, Tensor]:
    """``weights`` of a model for the characters ``theirs`` with the rows of shared characters where they belong.

    Rows of characters that ``theirs`` lacks are those of ``decoder``; everything else stays as it is.

    Args:
        layers: the first parts of the names of parameters with a row for every class.
        prefix: of the decoder's names in ``weights``.
        first: classes before the first character, the same in both (CTC: 1, the blank).
    """
    place = {character: number for number, character in enumerate(theirs)}
    shared = [(first + i, first + place[c]) for i, c in enumerate(ours) if c in place]
    pairs = torch.tensor([(i, i) for i in range(first)] + shared, dtype=torch.long).view(-1, 2)
    to, source = pairs.unbind(1)
    mapped = dict(weights)
    for name, own in decoder.state_dict().items():
        given = mapped.get(prefix + name)
        if name.split(".")[0] not in layers or given is None or own.shape[1:] != given.shape[1:]:
            continue
        if len(given) - len(theirs) == len(own) - len(ours) >= first:  # both have the same rows besides characters
            rows = own.detach().cpu().clone()
            rows[to] = given.to(rows.dtype)[source]
            mapped[prefix + name] = rows
    return mapped
