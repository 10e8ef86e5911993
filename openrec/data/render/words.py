"""What to write: words of lists found on the system or given, signs, pseudo-words, numbers, random strings."""

from __future__ import annotations

import logging
import sys
import unicodedata
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from openrec.data.render import lexicon
from openrec.errors import ConfigError

logger = logging.getLogger("openrec")

SPLITS = ("train", "test", None)
TEST_SHARE = 10  # one text in ten belongs to the "test" part
LANGUAGES = ("en", "ko", "zh", "random")

_SYSTEM_LISTS = {
    "en": ("/usr/share/dict/american-english", "/usr/share/dict/british-english", "/usr/share/dict/words"),
    "ko": ("/usr/share/hunspell/ko_KR.dic", "/usr/share/hunspell/ko.dic", "/usr/share/myspell/dicts/ko.dic"),
    "zh": ("/usr/lib/python3/dist-packages/jieba/dict.txt", "/usr/share/rime-data/essay.txt"),
}
# Relative frequency of word lengths 1, 2, 3, ...: English as counted on incidental scene text.
_LENGTHS = {
    "en": (2, 5, 18, 23, 15, 13, 11, 7, 4, 2.5, 1.3, 0.8, 0.5),
    "ko": (4, 28, 27, 20, 9, 5, 3, 2, 1),
    "zh": (5, 28, 18, 22, 9, 6, 4, 3, 2),
    "random": (3, 6, 12, 14, 14, 12, 10, 8, 6, 4, 3, 2),
}
_TAIL = 0.03  # weight of each longer length


def held_out(text: str) -> bool:
    """Whether a text belongs to the ``test`` part; "Exit" and "EXIT" stay together."""
    return zlib.crc32(text.casefold().encode()) % TEST_SHARE == 0


def system_word_list(language: str) -> Path | None:
    """The first word list for ``language`` on this system."""
    places = [Path(p) for p in _SYSTEM_LISTS.get(language, ())]
    if language == "zh":
        places += [Path(p) / "jieba" / "dict.txt" for p in sys.path if p]
    return next((place for place in places if place.is_file()), None)


@lru_cache(maxsize=8)
def read_words(path: str) -> tuple[str, ...]:
    """Words of a UTF-8 file, one a line; what follows a TAB (a count) is left out, and so are "'s" forms.

    hunspell ``.dic`` files (flags after "/") and jieba's ``dict.txt`` (word, count, kind) are known.

    Raises:
        ConfigError: unreadable or not UTF-8.
    """
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(
            f'words: cannot read "{path}" ({error.strerror}). Expected a text file, one word a line.'
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f'words: "{path}" is not UTF-8 ({error}). Save it as UTF-8.') from error
    if path.endswith(".dic"):
        lines = [line.split("/")[0] for line in lines[1:]]
    elif path.endswith("jieba/dict.txt"):
        lines = [line.split(" ")[0] for line in lines]
    words = (unicodedata.normalize("NFC", line.split("\t")[0].strip()) for line in lines)
    return tuple(dict.fromkeys(w for w in words if w and not w.endswith("'s")))


class WordSource:
    """Draws texts.

    Args:
        characters: all that may occur in a text (a space among them allows two-word texts).
        language: ``en``, ``ko``, ``zh``, or ``random`` for strings of any script's characters.
        words: None: the system's list if there is one, and the built-in model; ``"model"``: the
            built-in model alone; ``"random"``: random strings alone; else one or more word files,
            whose words are written as they stand.
        split: ``"train"`` or ``"test"``: the part of all texts that this source may write, by hash,
            so that no test text is ever a training text; None: all.
        random_share: part of texts that are random strings.
        without: parts to leave out, see ``openrec.data.render.switches``.

    Raises:
        ConfigError: no text is possible; wrong split or lengths; unreadable list.
    """

    def __init__(
        self,
        characters: Sequence[str] | str,
        language: str = "en",
        *,
        words: str | Path | Sequence[str | Path] | None = None,
        min_length: int = 1,
        max_length: int = 25,
        split: str | None = None,
        random_share: float = 0.08,
        without: frozenset[str] = frozenset(),
    ) -> None:
        self.without = without
        if split not in SPLITS:
            raise ConfigError(f'split: expected "train", "test" or nothing, got {split!r}.')
        if not 1 <= min_length <= max_length:
            raise ConfigError(f"expected 1 <= min_length <= max_length, got {min_length} and {max_length}.")
        self.language, self.split, self.random_share = language, split, random_share
        self.min_length, self.max_length = min_length, max_length
        self.allowed = frozenset(c for c in characters if len(c) == 1)
        self.found: list[str] = []  # for the startup summary
        self._alphabet()
        self._lists(words)
        self._length_steps: dict[tuple[int, int], np.ndarray] = {}
        self.draw(np.random.default_rng(0))  # impossible settings show here, not in a worker

    def _alphabet(self) -> None:
        visible = sorted(c for c in self.allowed if not c.isspace())
        if not visible:
            raise ConfigError("the charset holds no visible single character, so there is nothing to render.")
        script = set(lexicon.script_characters(self.language)) if self.language != "random" else set(visible)
        self.common = [c for c in visible if c in script]
        self.rare = [c for c in visible if c not in script and c.isalpha() and ord(c) > 127]
        self.digits = [c for c in visible if c in "0123456789"]
        self.upper = [c for c in visible if "A" <= c <= "Z"]
        self.lower = [c for c in visible if "a" <= c <= "z"]
        self.marks = [c for c in visible if c in "!.,'-:&?"]
        self.pool = self.common or visible
        if self.language in ("ko", "zh") and not self.common:
            name = "Hangul syllables" if self.language == "ko" else "GB 2312 characters"
            raise ConfigError(f'language "{self.language}": the charset holds no {name}; check character_dict_path.')
        self.patterns = [p for p in lexicon.PATTERNS if self._possible(p)]

    def _possible(self, pattern: str) -> bool:
        kinds = {"9": self.digits, "A": self.upper, "a": self.lower}
        return all(bool(kinds[c]) if c in kinds else c in self.allowed for c in pattern)

    def _lists(self, words: str | Path | Sequence[str | Path] | None) -> None:
        self.given: list[str] = []
        self.listed: dict[int, list[str]] = {}
        self.only_random = words == "random" or self.language == "random"
        if words is None and not self.only_random:
            found = system_word_list(self.language)
            if found is not None:
                self._add(read_words(str(found)), str(found))
        elif words not in (None, "model", "random"):
            paths = [words] if isinstance(words, (str, Path)) else list(words or ())
            for path in paths:
                all_words = read_words(str(path))
                usable = [w for w in all_words if self._usable(w)]
                self.given += usable
                self.found.append(f"{path}: {len(all_words)} words, {len(usable)} usable")
            if not self.given:
                raise ConfigError(
                    f"words: none of the words in {', '.join(map(str, paths))} can be used (length {self.min_length} "
                    f"to {self.max_length}, characters of the charset{self._split_note()})."
                )
        if not self.given and not self.only_random:
            self._add(lexicon.signs(self.language), "built-in signs", weight=3)

    def _split_note(self) -> str:
        return f', "{self.split}" part' if self.split else ""

    def _usable(self, word: str) -> bool:
        return (
            self.min_length <= len(word) <= self.max_length and self.allowed.issuperset(word) and self.in_split(word)
        )  # fmt: skip

    def in_split(self, text: str) -> bool:
        return self.split is None or held_out(text) == (self.split == "test")

    def _add(self, words: Sequence[str], name: str, weight: int = 1) -> None:
        count = 0
        fold = self.upper and not self.lower
        for word in words:
            word = word.upper() if fold else word
            if self.allowed.issuperset(word) or (self.lower and self.allowed.issuperset(word.lower())):
                self.listed.setdefault(len(word), []).extend([word] * weight)
                count += 1
        self.found.append(f"{name}: {count} of {len(words)} words fit the charset")

    def draw(self, rng: np.random.Generator, lengths: tuple[int, int] | None = None) -> str:
        """A text; ``lengths`` narrows the range of its length (both ends included) where possible.

        Raises:
            ConfigError: the settings allow no text.
        """
        low, high = self.min_length, self.max_length
        if lengths is not None:
            low, high = max(low, min(lengths[0], high)), min(high, max(lengths[1], low))
        for attempt in range(400):
            if self.given and attempt < 300:
                text = self.given[int(rng.integers(len(self.given)))]
            elif attempt < 60:
                text = self._compose(rng, self._length(rng, low, high))
            else:
                text = self._random(rng, int(rng.integers(low, high + 1)))
            near = low <= len(text) <= high or (attempt >= 100 and self.min_length <= len(text) <= self.max_length)
            if near and self.allowed.issuperset(text) and self._reads(text) and self.in_split(text):
                return text
            if attempt == 200:
                low, high = self.min_length, self.max_length
        raise ConfigError(
            f"no text of {self.min_length} to {self.max_length} characters is possible with this charset"
            f"{self._split_note()}; allow longer texts or leave out the split."
        )

    def _reads(self, text: str) -> bool:
        """Whether a reader could tell the text: a lone dash or dot has no size to tell it by."""
        return text.strip() == text and (not self.pool[0].isalnum() or any(c.isalnum() for c in text))

    def _length(self, rng: np.random.Generator, low: int, high: int) -> int:
        steps = self._length_steps.get((low, high))
        if steps is None:
            table = (1.0,) * high if "lengths" in self.without else _LENGTHS[self.language]
            weights = [table[n - 1] if n <= len(table) else _TAIL for n in range(low, high + 1)]
            # A long tail together stays below 2 %, unless only long texts are wanted.
            tail = max(0, high - max(low - 1, len(table)))
            if tail and low <= len(table):
                limit = 0.02 * sum(weights) / tail
                weights = [w if n <= len(table) else min(w, limit) for n, w in enumerate(weights, low)]
            steps = self._length_steps[low, high] = np.cumsum(weights) / sum(weights)
        return low + min(int(np.searchsorted(steps, rng.random())), high - low)

    def _compose(self, rng: np.random.Generator, length: int) -> str:
        kind = rng.random()
        if self.only_random or kind < self.random_share:
            return self._random(rng, length)
        kind = rng.random()
        if kind < 0.08 and self.patterns and "numbers" not in self.without:
            return self._number(rng, length)
        if " " in self.allowed and kind > 0.85 and length >= 5:
            cut = int(rng.integers(2, length - 2))
            return self._word(rng, cut) + " " + self._word(rng, length - 1 - cut)
        if kind > 0.96 and self.marks and length >= 3 and "marks" not in self.without:
            word, mark = self._word(rng, length - 1), self.marks[int(rng.integers(len(self.marks)))]
            return mark + word if rng.random() < 0.15 else word + mark
        return self._word(rng, length)

    def _word(self, rng: np.random.Generator, length: int) -> str:
        words = self.listed.get(length)
        if words and rng.random() < (0.88 if len(words) > 50 else 0.4):
            word = words[int(rng.integers(len(words)))]
        elif self.language == "en":
            word = lexicon.english_word(rng, length)
        elif self.language == "ko":
            word = "".join(self._syllable(rng) for _ in range(length))
        else:
            return self._random(rng, length)
        return self._cased(rng, word) if self.language == "en" and "case" not in self.without else word

    def _syllable(self, rng: np.random.Generator) -> str:
        if rng.random() < 0.6:
            syllable = lexicon.hangul_syllable(rng)
            if syllable in self.allowed:
                return syllable
        return self.common[int(rng.integers(len(self.common)))]

    def _cased(self, rng: np.random.Generator, word: str) -> str:
        kind = rng.random()
        if not self.lower or (self.upper and kind < 0.50):
            return word.upper()
        if not self.upper or kind < 0.72:
            return word.lower()
        if kind < 0.95:
            return word[:1].upper() + word[1:].lower()
        return word

    def _number(self, rng: np.random.Generator, length: int) -> str:
        fitting = [p for p in self.patterns if len(p) == length] or self.patterns
        kinds = {"9": self.digits, "A": self.upper, "a": self.lower}
        pattern = fitting[int(rng.integers(len(fitting)))]
        return "".join(kinds[c][int(rng.integers(len(kinds[c])))] if c in kinds else c for c in pattern)

    def _random(self, rng: np.random.Generator, length: int) -> str:
        kind = rng.random()
        pool = self.pool
        if self.digits and kind < 0.3:
            pool = self.digits if kind < 0.08 else self.digits + self.upper + self.lower
        elif kind < 0.4 and self.language != "random":
            pool = sorted(self.allowed - {" "}) if self.language == "en" else self.rare or pool
        elif self.language == "en" and kind < 0.8:
            pool = (self.upper if kind < 0.6 else self.lower) or pool
        return "".join(pool[int(i)] for i in rng.integers(len(pool), size=length))
