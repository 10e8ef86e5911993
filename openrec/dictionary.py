"""Dictionaries from named sets of characters, for ``Global.character_dict_path``.

Sets come from Unicode and from Python's own codecs, so there is nothing to download: Korean has 11,172 composed
syllables in Unicode, of which KS X 1001 (the codec ``euc_kr``) names the 2,350 in common use; GB 2312 names 6,763
Chinese characters, JIS X 0208 6,355 kanji.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from openrec.errors import ConfigError, writing


def _range(first: str, last: str) -> list[str]:
    return [chr(c) for c in range(ord(first), ord(last) + 1)]


def _rows(codec: str, rows: Iterable[int]) -> list[str]:
    """Characters of some rows (from 0xA1) of a 94 x 94 table, in its order."""
    found = []
    for row in rows:
        for cell in range(0xA1, 0xFF):
            try:
                found.append(bytes((row, cell)).decode(codec))
            except UnicodeDecodeError:
                continue
    return found


def _letters(first: int, last: int, scripts: Sequence[str]) -> list[str]:
    """Letters between two code points whose Unicode names begin with one of ``scripts``."""
    chosen = (chr(c) for c in range(first, last + 1))
    return [
        c for c in chosen if unicodedata.category(c)[0] == "L" and unicodedata.name(c, "").startswith(tuple(scripts))
    ]


def _latin() -> list[str]:
    """Letters of the languages of Europe: Latin-1 and Latin Extended-A, without ligatures and joined letters."""
    return [c for c in _letters(0xC0, 0x17F, ("LATIN",)) if c not in "ŉſĿŀĲĳ"]


def _ascii() -> list[str]:
    """Digits, small letters, capitals, marks: the order of OpenOCR's dictionary, so that its weights fit."""
    marks = [c for c in _range("!", "~") if not c.isalnum()]
    return [*_range("0", "9"), *_range("a", "z"), *_range("A", "Z"), *marks]


def _cyrillic() -> list[str]:
    return _letters(0x401, 0x45F, ("CYRILLIC",)) + ["Ґ", "ґ"]


_WIDE = "、。〈〉《》「」『』【】〔〕・〜！？，．：；（）％"

SETS: dict[str, tuple[str, Callable[[], list[str]]]] = {
    "digits": ("0-9", lambda: list("0123456789")),
    "lower": ("a-z", lambda: _range("a", "z")),
    "upper": ("A-Z", lambda: _range("A", "Z")),
    "alnum": ("0-9 a-z", lambda: list("0123456789") + _range("a", "z")),
    "ascii": ("the 94 printable characters of ASCII, in the order of EN_symbol_dict.txt", _ascii),
    "punctuation": ("marks of ASCII", lambda: _ascii()[62:]),
    "sign-marks": ("marks of shop signs, prices, addresses", lambda: list("!\"#$%&'()*+,-./:;<=>?@[]_~·")),
    "marks": ("quotes, dashes and signs that print uses beside ASCII", lambda: list("‘’“”–—…·•«»¡¿§°©®™€£¥₩×÷")),
    "latin": ("accented Latin letters of Europe", _latin),
    "greek": ("Greek letters", lambda: _letters(0x386, 0x3CE, ("GREEK SMALL", "GREEK CAPITAL"))),
    "cyrillic": ("Cyrillic letters, also of Ukrainian and Belarusian", _cyrillic),
    "korean": ("all 11,172 syllables of Unicode", lambda: _range("가", "힣")),
    "korean-2350": ("the 2,350 syllables of KS X 1001, in its order", lambda: _rows("euc_kr", range(0xB0, 0xC9))),
    "jamo": ("the 51 single letters of modern Korean (ㄱ, ㅏ)", lambda: _range("ㄱ", "ㅣ")),
    "hiragana": ("Japanese hiragana", lambda: _range("ぁ", "ゖ")),
    "katakana": ("Japanese katakana and the long vowel mark", lambda: _range("ァ", "ヺ") + ["ー"]),
    "kanji": ("6,355 kanji of JIS X 0208", lambda: _rows("euc_jp", range(0xB0, 0xF5))),
    "chinese": ("6,763 characters of GB 2312", lambda: _rows("gb2312", range(0xB0, 0xF8))),
    "chinese-3755": ("the 3,755 most common of GB 2312", lambda: _rows("gb2312", range(0xB0, 0xD8))),
    "fullwidth": ("marks of Chinese, Japanese and Korean print", lambda: list(_WIDE)),
}  # fmt: skip


def characters_of(names: Sequence[str], extra: str = "", texts: Iterable[str] = ()) -> list[str]:
    """Characters of several sets in order, each once.

    Args:
        names: keys of ``SETS``.
        extra: further characters.
        texts: labels; their characters that no set has are added, sorted.

    Raises:
        ConfigError: an unknown set, or nothing in the end.
    """
    for name in names:
        if name not in SETS:
            raise ConfigError(f'"{name}" is no set of characters. There are: {", ".join(SETS)}.')
    found = dict.fromkeys(c for name in names for c in SETS[name][1]())
    found |= dict.fromkeys(c for c in extra if not c.isspace())
    seen = {c for text in texts for c in unicodedata.normalize("NFC", text)}
    added = sorted(c for c in seen - set(found) if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf"))
    found |= dict.fromkeys(added)
    if not found:
        raise ConfigError(f"no characters: name a set ({', '.join(SETS)}), characters, or a label file.")
    return list(found)


def write_dictionary(path: str | Path, characters: Sequence[str]) -> None:
    """UTF-8, one character a line, as ``Charset.load`` reads it."""
    with writing(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("".join(c + "\n" for c in characters), encoding="utf-8", newline="\n")
