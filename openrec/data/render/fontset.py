"""The faces a renderer draws with: found, fit for the language, split, chosen by family."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openrec.data.render.fonts import Face, default_face, find_faces, system_directories
from openrec.errors import ConfigError, SampleError

logger = logging.getLogger("openrec")

SPLITS = ("train", "test", None)
PACKAGES = {
    "en": "fonts-dejavu-core or fonts-liberation2",
    "ko": "fonts-nanum",
    "zh": "fonts-wqy-microhei or fonts-noto-cjk",
    "random": "fonts-noto-core",
}


class FontSet:
    """Usable faces, grouped by family.

    Args:
        wanted: the characters to draw.
        language: names the script that a face must draw to be used at all.
        fonts: see ``find_faces``; None for the system's fonts.
        split: ``train`` or ``test`` part of the families, by hash of the name; None: all.
        by_family: choose a family first; False: all faces alike.

    Raises:
        ConfigError: no face is left; the message names a package.
    """

    def __init__(
        self,
        wanted: Sequence[str],
        language: str = "en",
        fonts: str | Path | Sequence[str | Path] | None = None,
        split: str | None = None,
        by_family: bool = True,
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f'font_split: expected "train", "test" or nothing, got {split!r}.')
        self.language = language
        self.faces = _held_part(_find(wanted, language, fonts), split)
        self.drawn = frozenset[str]().union(*(face.characters for face in self.faces))
        self.missing = sorted(c for c in wanted if c not in self.drawn and not c.isspace())
        if self.missing:
            logger.info(
                "SyntheticWords: %d of %d characters are in no font here and will not occur: %s (more fonts: %s)",
                len(self.missing), len(wanted), _shown(self.missing), PACKAGES[language],
            )  # fmt: skip
        groups: dict[str, list[Face]] = {}
        for face in self.faces:
            groups.setdefault(face.group, []).append(face)
        self.groups = list(groups.values())
        self.by_family = by_family

    def summary(self) -> list[str]:
        """Lines for a startup log."""
        lines = [f"{len(self.faces)} font faces in {len(self.groups)} families"]
        if self.missing:
            lines.append(f"{len(self.missing)} characters of the charset are in no font: {_shown(self.missing)}")
        return lines

    def packages(self) -> str:
        """Debian packages with fonts for the language, for messages."""
        return PACKAGES[self.language]

    def pick(self, rng: np.random.Generator, text: str) -> Face:
        """A family first, then a face of it, that covers ``text``; else large families would dominate.

        Raises:
            SampleError: no face has all characters of ``text``.
        """
        for _ in range(12):
            group = self.groups[int(rng.integers(len(self.groups)))] if self.by_family else self.faces
            face = group[int(rng.integers(len(group)))]
            if face.covers(text):
                return face
        able = [face for face in self.faces if face.covers(text)]
        if not able:
            raise SampleError(f"no font draws all of {text!r}")
        return able[int(rng.integers(len(able)))]


def _find(wanted: Sequence[str], language: str, fonts: Any) -> list[Face]:
    faces = [f for f in find_faces(wanted, fonts) if _serves(f, wanted, language)]
    if faces:
        return faces
    last = default_face(wanted) if fonts is None else None
    if last is not None and _serves(last, wanted, language):
        logger.warning(
            "SyntheticWords: no font on this system draws the charset; using the one face that Pillow brings "
            "along. Install %s (Debian, Ubuntu) for variety.", PACKAGES[language],
        )  # fmt: skip
        return [last]
    where = fonts or ", ".join(str(p) for p in system_directories()) or "no font directory exists"
    raise ConfigError(
        f'fonts: no font draws the characters of language "{language}" (looked in: {where}). Install '
        f"{PACKAGES.get(language, 'a font')} (Debian, Ubuntu) or name font files or directories in `fonts`."
    )


def _held_part(faces: list[Face], split: str | None) -> list[Face]:
    if split is None:
        return faces
    part = [f for f in faces if f.held_out() == (split == "test")]
    if not part:
        groups = sorted({f.group for f in faces})
        raise ConfigError(
            f'font_split "{split}": none of the {len(groups)} font families here fall into it '
            f"({', '.join(groups[:8])}); install more families or leave out font_split."
        )
    return part


def _serves(face: Face, wanted: Sequence[str], language: str) -> bool:
    """Whether a face draws enough of the language: single stray letters do not make a Korean font."""
    scripts = {"ko": lambda c: "가" <= c <= "힣", "zh": lambda c: "一" <= c <= "鿿", "en": str.isascii}
    test = scripts.get(language)
    script = [c for c in wanted if not c.isspace() and (test is None or test(c))]
    have = sum(c in face.characters for c in script)
    # Half of ASCII: faces of capitals, or without some punctuation, are fine.
    share = {"en": 0.5, "ko": 0.3, "zh": 0.3}.get(language, 0.02)
    return have > 0 and have >= share * len(script)


def _shown(characters: Sequence[str]) -> str:
    return "".join(characters[:20]) + ("..." if len(characters) > 20 else "")
