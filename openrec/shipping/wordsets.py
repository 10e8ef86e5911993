"""Words to score a model on: photographs with labels, and rendered words of unseen texts and fonts."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openrec.charset import Charset
from openrec.data.render import WordRenderer
from openrec.errors import DataError

EVERY = 10  # a held-out part is every tenth row of a label file, counted from 1
RENDERED_SEED = 20261121
_SCRIPTS = ("HANGUL", "CJK", "HIRAGANA", "KATAKANA", "THAI", "ARABIC", "CYRILLIC", "GREEK", "DEVANAGARI", "LATIN")
_JOINED = {"CJK": "Han", "HIRAGANA": "Japanese", "KATAKANA": "Japanese"}


@dataclass(frozen=True)
class Word:
    """One test image: encoded bytes, its label, the file or number it came from."""

    image: bytes
    text: str
    name: str


@dataclass(frozen=True)
class WordSet:
    """A named test set; ``about`` says how it was made. ``photographs``: may occur in training data."""

    name: str
    about: str
    words: Sequence[Word]
    photographs: bool = True


def read_rows(folder: str | Path) -> list[tuple[str, str]]:
    """``(file, text)`` of every row of ``folder/labels.tsv``; further columns are left out.

    Raises:
        DataError: no such file, or a row without a text.
    """
    path = Path(folder).expanduser() / "labels.tsv"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DataError(f'"{path}" cannot be read ({why}). Expected UTF-8 rows file<TAB>text.') from error
    rows = [tuple(line.split("\t")[:2]) for line in lines if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) < 2:
            raise DataError(f'"{path}", row {number}: expected file<TAB>text, got "{row[0][:60]}".')
    return rows  # type: ignore[return-value]


def is_held_out(number: int, every: int = EVERY) -> bool:
    """Whether the row with this 1-based number is for evaluation."""
    return number % every == 0


def held_out_words(folder: str | Path, every: int = EVERY) -> WordSet:
    """The rows of ``folder/labels.tsv`` whose number is a multiple of ``every``."""
    rows = [row for number, row in enumerate(read_rows(folder), 1) if is_held_out(number, every)]
    about = f"rows {every}, {2 * every}, {3 * every}, ... of labels.tsv"
    return WordSet(f"{Path(folder).name}, held out", about, _open(folder, rows))


def all_words(folder: str | Path) -> WordSet:
    """Every row of ``folder/labels.tsv``."""
    return WordSet(Path(folder).name, "every row of labels.tsv", _open(folder, read_rows(folder)))


def _open(folder: str | Path, rows: Sequence[tuple[str, str]]) -> list[Word]:
    words = []
    for name, text in rows:
        path = Path(folder).expanduser() / name
        try:
            words.append(Word(path.read_bytes(), unicodedata.normalize("NFC", text), name))
        except OSError as error:
            raise DataError(f'"{path}" is named in labels.tsv and cannot be read ({error.strerror}).') from error
    return words


def rendered_words(charset: Charset, language: str, count: int, max_length: int, seed: int = RENDERED_SEED) -> WordSet:
    """``count`` rendered words: texts and font families that training with ``font_split: train`` never draws."""
    split = {"word_split": "test", "font_split": "test"}
    renderer = WordRenderer(charset, language, max_length=max_length, **split)  # type: ignore[arg-type]
    done = [renderer.render(np.random.default_rng((seed, i))) for i in range(count)]
    about = (
        f"seed {seed}, at most {max_length} characters, texts and font families of the test part "
        f"({len({w.font for w in done})} faces, {len({w.text for w in done})} different texts)"
    )
    words = [Word(w.jpeg, w.text, f"{i}: {w.font}") for i, w in enumerate(done)]
    return WordSet(f"rendered, {language}", about, words, photographs=False)


def language_of(charset: Charset) -> str:
    """``ko``, ``zh`` or ``en``: whose words are written in this charset."""
    text = "".join(charset.characters)
    if any("가" <= c <= "힣" for c in text):
        return "ko"
    return "zh" if any("一" <= c <= "鿿" for c in text) else "en"


def script_of(text: str) -> str:
    """The script that most letters of a text belong to: Latin, Hangul, Han, ...; ``digits``; ``marks``.

    A text with any kana is Japanese.
    """
    found: Counter[str] = Counter()
    for c in text:
        if unicodedata.category(c)[0] in "LM":
            name = next((s for s in _SCRIPTS if unicodedata.name(c, "").startswith(s)), "OTHER")
            found[_JOINED.get(name, name.capitalize())] += 1
    if "Japanese" in found:
        return "Japanese"
    if found:
        return found.most_common(1)[0][0]
    return "digits" if any(c.isdigit() for c in text) else "marks"
