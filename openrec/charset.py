"""Characters and their numbers: the one owner of text.

A run has one ``Charset``. Label encoders, post-processors and checkpoints all hold that object, so
that encoding and decoding cannot disagree. Layouts of special tokens are in ``TOKEN_LAYOUTS``.

Layouts and the dictionary file format are those of OpenOCR (https://github.com/Topdu/OpenOCR,
Apache-2.0); encoding rules follow the same interface.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openrec.errors import ConfigError

DEFAULT_CHARACTERS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Charset:
    """The characters a model can read, in the order of their numbers.

    Args:
        characters: one string per character (a dictionary line may hold several code points).
        lower: labels are lower-cased before encoding (the 36-character set without a dictionary).
        source: the dictionary file, for messages; a path that contains ``arabic`` switches on
            run reversal in CTC decoding.
    """

    characters: tuple[str, ...]
    lower: bool = False
    source: str = ""

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        for number, character in enumerate(self.characters):
            seen.setdefault(character, number)
        object.__setattr__(self, "_ids", seen)

    @classmethod
    def load(cls, character_dict_path: str | None = None, use_space_char: bool = False) -> Charset:
        """Read a dictionary file (UTF-8, one character a line); ``None`` means 0-9 and a-z, case folded.

        Raises:
            ConfigError: the file is missing, empty or not UTF-8.
        """
        if character_dict_path is None:
            characters, lower = list(DEFAULT_CHARACTERS), True
        else:
            characters, lower = _read_dictionary(Path(character_dict_path).expanduser()), False
        if use_space_char:
            characters.append(" ")
        return cls(tuple(characters), lower, str(character_dict_path or ""))

    def __len__(self) -> int:
        return len(self.characters)

    def __contains__(self, character: str) -> bool:
        return character in self._ids  # type: ignore[attr-defined]

    @property
    def is_arabic(self) -> bool:
        return "arabic" in self.source

    def normalize(self, text: str) -> str:
        """The text as the encoders see it: lower-cased where the set has no upper case of its own."""
        return text.lower() if self.lower else text

    def encode(self, text: str) -> list[int]:
        """Character numbers 0..N-1; characters outside the set are left out."""
        ids = self._ids  # type: ignore[attr-defined]
        return [ids[c] for c in self.normalize(text) if c in ids]

    def unknown(self, text: str) -> list[str]:
        """The characters of ``text`` that the set lacks, in order."""
        ids = self._ids  # type: ignore[attr-defined]
        return [c for c in self.normalize(text) if c not in ids]

    def state(self) -> dict[str, Any]:
        """Plain types for a checkpoint; ``Charset.from_state`` is the way back."""
        return {"characters": list(self.characters), "lower": self.lower, "source": self.source}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Charset:
        return cls(tuple(state["characters"]), bool(state["lower"]), str(state.get("source", "")))


def _read_dictionary(path: Path) -> list[str]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(
            f'character_dict_path: cannot read "{path}" ({error.strerror}). Expected a UTF-8 text file with one '
            "character a line; relative paths start at the working directory."
        ) from error
    if lines and lines[-1] in (b"", b"\r"):
        lines.pop()
    try:
        characters = [line.decode("utf-8").strip("\r\n") for line in lines]
    except UnicodeDecodeError as error:
        raise ConfigError(f'character_dict_path: "{path}" is not UTF-8 ({error}). Save it as UTF-8.') from error
    if not characters:
        raise ConfigError(f'character_dict_path: "{path}" is empty. Expected one character a line.')
    return characters


# Special tokens around the N characters: names before them and after them, by kind of label.
TOKEN_LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ctc": (("blank",), ()),
    "ar": (("</s>",), ("<s>", "<pad>")),
    "ep": (("</s>",), ("<pad>",)),
    "smtr": (("</s>",), ("<s>", "<INF>", "<INB>", "<pad>")),
    "ce": ((), ()),
}


@dataclass(frozen=True)
class TokenTable:
    """Numbers of characters and special tokens for one kind of label (a key of ``TOKEN_LAYOUTS``)."""

    charset: Charset
    kind: str

    @property
    def tokens(self) -> list[str]:
        """All tokens in the order of their numbers."""
        before, after = TOKEN_LAYOUTS[self.kind]
        return [*before, *self.charset.characters, *after]

    @property
    def first(self) -> int:
        """The number of the first character."""
        return len(TOKEN_LAYOUTS[self.kind][0])

    def __len__(self) -> int:
        before, after = TOKEN_LAYOUTS[self.kind]
        return len(before) + len(self.charset) + len(after)

    def special(self, token: str) -> int:
        """The number of a special token, e.g. ``special("<pad>")``."""
        before, after = TOKEN_LAYOUTS[self.kind]
        if token in before:
            return before.index(token)
        return self.first + len(self.charset) + after.index(token)

    def encode(self, text: str) -> list[int]:
        """Numbers of the text's known characters, without special tokens."""
        first = self.first
        return [number + first for number in self.charset.encode(text)]
