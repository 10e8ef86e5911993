"""Label encoders: text -> numbers, one op for each kind of decoder.

Layouts are those of OpenOCR (https://github.com/Topdu/OpenOCR, Apache-2.0); the sub-strings are SMTR's (Du et
al., "Out of Length Text Recognition with Sub-String Matching", AAAI 2025). All numbers are int64 on every
platform. Characters outside the charset are left out of the label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openrec import registry
from openrec.charset import Charset, TokenTable
from openrec.errors import ConfigError, SampleError

Sample = dict[str, Any]


class LabelEncoder:
    """Base of all encoders: ``encoder(sample) -> sample`` replaces ``sample["label"]``, a text.

    Args:
        max_text_length: L, the most characters of a label (counted after unknown ones are left out).
        character_dict_path, use_space_char: the charset, where no ``charset`` is given.
        charset: the run's charset.

    A call raises ``SampleError`` for a label that ``refuses`` names a reason for.
    """

    kind = ""
    keeps_boxes = True  # changes no pixel

    def __init__(
        self,
        max_text_length: int,
        character_dict_path: str | None = None,
        use_space_char: bool = False,
        charset: Charset | None = None,
    ):
        self.max_text_length = int(max_text_length)
        self.charset = charset if charset is not None else Charset.load(character_dict_path, use_space_char)
        self.table = TokenTable(self.charset, self.kind)

    @property
    def num_classes(self) -> int:
        """Size of the token table."""
        return len(self.table)

    def refuses(self, text: str) -> str | None:
        """Why ``text`` cannot be a label, or ``None``."""
        return self._reason(text, len(self.charset.encode(text)))

    def _reason(self, text: str, length: int) -> str | None:
        if not text:
            return "label is empty"
        if length == 0:
            return "no character of the label is in the dictionary"
        if length > self.max_text_length:
            return f"label longer than max_text_length {self.max_text_length}"
        return None

    def encode(self, text: str) -> list[int]:
        """The characters' token numbers.

        Raises:
            SampleError: the label is refused.
        """
        ids = self.table.encode(text)
        reason = self._reason(text, len(ids))
        if reason is not None:
            raise SampleError(reason)
        return ids

    def __call__(self, sample: Sample) -> Sample:
        sample.update(self.arrays(self.encode(sample["label"]), sample))
        return sample

    def arrays(self, ids: list[int], sample: Sample) -> dict[str, np.ndarray]:
        """The entries that the encoder adds to the sample."""
        raise NotImplementedError


class CTCLabelEncode(LabelEncoder):
    """``label [L]`` padded with 0 (blank), ``length``, ``label_ace [N + 1]``: counts in ``label``, padding included."""

    kind = "ctc"

    def arrays(self, ids: list[int], sample: Sample) -> dict[str, np.ndarray]:
        label = _padded(ids, self.max_text_length, 0)
        return {
            "label": label,
            "length": _number(len(ids)),
            "label_ace": np.bincount(label, minlength=self.num_classes).astype(np.int64, copy=False),
        }


class ARLabelEncode(LabelEncoder):
    """``label [L + 2]``: ``<s>``, characters, ``</s>``, padded with ``<pad>``; ``length``: characters."""

    kind = "ar"

    def arrays(self, ids: list[int], sample: Sample) -> dict[str, np.ndarray]:
        special = self.table.special
        label = [special("<s>"), *ids, special("</s>")]
        return {
            "label": _padded(label, self.max_text_length + 2, special("<pad>")),
            "length": _number(len(ids)),
        }


class EPLabelEncode(LabelEncoder):
    """``label [L + 1]``: characters, ``</s>``, padded with ``<pad>``; ``length``: characters."""

    kind = "ep"

    def arrays(self, ids: list[int], sample: Sample) -> dict[str, np.ndarray]:
        special = self.table.special
        return {
            "label": _padded([*ids, special("</s>")], self.max_text_length + 1, special("<pad>")),
            "length": _number(len(ids)),
        }


class CELabelEncode(LabelEncoder):
    """``label [n]``, not padded, for whole-image classes; the length limit counts unknown characters too."""

    kind = "ce"

    def _reason(self, text: str, length: int) -> str | None:
        return super()._reason(text, len(text) if length else 0)

    def arrays(self, ids: list[int], sample: Sample) -> dict[str, np.ndarray]:
        return {"label": np.array(ids, np.int64)}


class SMTRLabelEncode(ARLabelEncode):
    """``ARLabelEncode`` plus sub-strings with the character that follows, and mirrored, that precedes them.

    Adds ``label_subs [2L + 2, K]``, ``label_next [2L + 2]``, ``length_subs`` and the same with ``_pre``. A text of n
    characters has n + 1 sub-strings in each direction; those that are all characters (n >= K) get a copy with
    one character replaced at random, so that reading goes on after an error.

    Args:
        sub_str_len: K.
        perturb: "copy" adds such copies; "openocr" also replaces one character of the original, as OpenOCR
            does, so that the decoder never sees a long context without an error in training; "none".

    Nothing is replaced where ``sample["training"]`` is False.
    """

    kind = "smtr"

    def __init__(
        self,
        max_text_length: int,
        character_dict_path: str | None = None,
        use_space_char: bool = False,
        sub_str_len: int = 5,
        perturb: str = "copy",
        charset: Charset | None = None,
    ):
        super().__init__(max_text_length, character_dict_path, use_space_char, charset)
        if perturb not in ("copy", "openocr", "none"):
            raise ConfigError(f'SMTRLabelEncode.perturb: expected "copy", "openocr" or "none", got {perturb!r}.')
        self.sub_str_len, self.perturb = int(sub_str_len), perturb
        self._rng = np.random.default_rng()

    def arrays(self, ids: list[int], sample: Sample) -> dict[str, np.ndarray]:
        size, end = self.sub_str_len, self.table.special("</s>")
        padded, padded_back = [self.table.special("<INF>")] * size + ids, ids + [self.table.special("<INB>")] * size
        before = [padded[i : i + size] for i in range(len(ids) + 1)]
        after = [padded_back[i : i + size] for i in range(len(ids), -1, -1)]
        random = self._draws(len(ids), sample)
        forward = self._direction(before, [*ids, end], random[0])
        backward = self._direction(after, [*ids[::-1], end], random[1])
        return {**super().arrays(ids, sample), **forward, **{f"{k}_pre": v for k, v in backward.items()}}

    def _draws(self, length: int, sample: Sample) -> list[list[list[int]]]:
        """For each direction and full sub-string two positions and two characters."""
        count = max(length + 1 - self.sub_str_len, 0)
        if count == 0 or self.perturb == "none" or not sample.get("training", True):
            return [[], []]
        rng: np.random.Generator = sample.get("rng") or self._rng
        positions = rng.integers(0, self.sub_str_len, (2, count, 2))
        characters = rng.integers(self.table.first, self.table.first + len(self.charset), (2, count, 2))
        return np.concatenate((positions, characters), 2).tolist()

    def _direction(self, rows: list[list[int]], targets: list[int], draws: list[list[int]]) -> dict[str, np.ndarray]:
        seen = {tuple(row) for row in rows} if draws else set()
        for i, (place, other_place, character, other) in enumerate(draws, len(rows) - len(draws)):
            copy = list(rows[i])
            copy[place] = character
            if tuple(copy) not in seen:
                seen.add(tuple(copy))
                rows.append(copy)
                targets.append(targets[i])
            if self.perturb == "openocr":
                rows[i][other_place] = other
                seen.add(tuple(rows[i]))
        pad, height = self.table.special("<pad>"), 2 * self.max_text_length + 2
        subs = np.full((height, self.sub_str_len), pad, np.int64)
        subs[: len(rows)] = rows
        return {
            "label_subs": subs,
            "label_next": _padded(targets, height, pad),
            "length_subs": _number(len(rows)),
        }


class GTCLabelEncode:
    """The entries of an inner encoder, plus ``ctc_label [L]`` and ``ctc_length``.

    Args:
        gtc_label_encode: config of the guide's encoder; what it leaves open it takes from here.
    """

    nested = {"gtc_label_encode": "op"}

    def __init__(
        self,
        gtc_label_encode: Mapping[str, Any],
        max_text_length: int,
        character_dict_path: str | None = None,
        use_space_char: bool = False,
        charset: Charset | None = None,
    ):
        charset = charset if charset is not None else Charset.load(character_dict_path, use_space_char)
        self.charset, self.max_text_length = charset, int(max_text_length)
        self.gtc_label_encode: LabelEncoder = registry.build(
            "op", gtc_label_encode, "GTCLabelEncode.gtc_label_encode", max_text_length=max_text_length, charset=charset
        )
        self.ctc_label_encode = CTCLabelEncode(max_text_length, charset=charset)
        # What the data set asks before it hands boxes over is the guide's affair.
        self.wants_boxes, self.needs_boxes, self.keeps_boxes = (
            getattr(self.gtc_label_encode, name, False) for name in ("wants_boxes", "needs_boxes", "keeps_boxes")
        )

    def refuses(self, text: str) -> str | None:
        """Why either encoder refuses ``text``, or ``None``."""
        return self.ctc_label_encode.refuses(text) or self.gtc_label_encode.refuses(text)

    def __call__(self, sample: Sample) -> Sample:
        ctc = self.ctc_label_encode({"label": sample["label"]})
        sample = self.gtc_label_encode(sample)
        sample["ctc_label"], sample["ctc_length"] = ctc["label"], ctc["length"]
        return sample


def _padded(values: Sequence[int], length: int, pad: int) -> np.ndarray:
    array = np.full(length, pad, np.int64)
    array[: len(values)] = values
    return array


def _number(value: int) -> np.ndarray:
    return np.array(value, np.int64)
