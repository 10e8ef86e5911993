"""What all post-processors share: arg-max on the device, then texts from a table of characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from openrec.charset import Charset, TokenTable

Pair = tuple[str, float]


class Decoded(NamedTuple):
    """One text.

    Attributes:
        score: mean probability of the characters; 0.0 for an empty text.
        char_scores: probability of each character.
        positions: frame (CTC) or step at which each character was read.
    """

    text: str
    score: float
    char_scores: list[float]
    positions: list[int]


class LabelDecoder:
    """Base: a charset and the token table of ``kind``.

    Args:
        character_dict_path, use_space_char: the charset, where no ``charset`` is given.
        charset: the run's charset.
    """

    kind = ""

    def __init__(
        self,
        character_dict_path: str | None = None,
        use_space_char: bool = False,
        charset: Charset | None = None,
    ):
        self.charset = charset if charset is not None else Charset.load(character_dict_path, use_space_char)
        self.table = TokenTable(self.charset, self.kind)
        self.tokens = np.array(self.table.tokens, dtype=object)

    def get_character_num(self) -> Any:
        """Size of the token table, special tokens included."""
        return len(self.table)

    def __call__(self, preds: Any, batch: Sequence[Any] | None = None, torch_tensor: bool = True) -> Any:
        """``[(text, score)]``, and with ``batch`` the pair (predictions, labels).

        Args:
            preds: the decoder's probabilities; a list's or tuple's last element counts.
            batch: image, label, ...
            torch_tensor: False: ``preds`` is a NumPy array.
        """
        texts = [(item.text, self.score_of(item)) for item in self.decode_detailed(preds)]
        return texts if batch is None else (texts, self.labels(batch))

    def score_of(self, item: Decoded) -> float:
        """The score that a call gives."""
        return item.score

    def decode_detailed(self, preds: Any) -> list[Decoded]:
        """Text, score, characters' scores and positions for every image."""
        ids, scores = best(preds)
        keep = self.kept(ids)
        scores, positions = scores[keep], np.nonzero(keep)[1].tolist()  # of all texts, one after the other
        characters, char_scores, start = self.tokens[ids[keep]].tolist(), scores.tolist(), 0
        items = []
        for end in keep.sum(1).cumsum().tolist():
            score = float(np.add.reduce(scores[start:end]) / (end - start)) if end > start else 0.0
            items.append(self.item(characters[start:end], score, char_scores[start:end], positions[start:end]))
            start = end
        return items

    def item(self, characters: list[str], score: float, char_scores: list[float], positions: list[int]) -> Decoded:
        """One text from its characters, which come in the decoder's order."""
        return Decoded("".join(characters), score, char_scores, positions)

    def kept(self, ids: np.ndarray) -> np.ndarray:
        """Which of ``ids [B, T]`` are characters of the texts (bool)."""
        raise NotImplementedError

    def labels(self, batch: Sequence[Any]) -> list[Pair]:
        """The batch's labels as texts, each with score 1."""
        raise NotImplementedError


def best(preds: Any) -> tuple[np.ndarray, np.ndarray]:
    """Arg-max and its probability (float32), ``[B, T]`` each (T = 1 for ``[B, C]``); of equal maxima the first."""
    if isinstance(preds, Mapping):  # of a decoder whose loss wants more than logits
        preds = preds["logits"]
    if isinstance(preds, (list, tuple)):
        preds = preds[-1]
    if preds.ndim == 4:  # several readings of each image, [B, S, T, C]
        preds = preds[:, 0]
    if not isinstance(preds, Tensor):
        preds = np.asarray(preds)
        return _rows(preds.argmax(-1)), _rows(preds.max(-1).astype(np.float32, copy=False))
    scores, ids = preds.detach().max(-1)
    both = torch.stack((scores.double(), ids.double())).cpu().numpy()  # one transfer
    return _rows(both[1].astype(np.int64)), _rows(both[0].astype(np.float32))


def _rows(values: np.ndarray) -> np.ndarray:
    return values[:, None] if values.ndim == 1 else values


def to_numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
