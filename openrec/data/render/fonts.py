"""Fonts on this machine: where they lie, what they can draw, which are unfit for labels.

A face is unfit when what it draws is not what the label says: symbol faces that claim ASCII,
key caps, inverse letters, and lower-case letters drawn as capitals. The last kind is kept and loses
its lower-case letters.
"""

from __future__ import annotations

import logging
import os
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFont, features

from openrec.data.render.sfnt import NoCharacterMap, face_count, glyph_ids
from openrec.errors import ConfigError
from openrec.registry import nearest

logger = logging.getLogger("openrec")

SUFFIXES = (".ttf", ".otf", ".ttc", ".otc", ".woff", ".woff2")
DEFAULT = ""  # path of the face that Pillow brings along

# Parts of family names whose faces draw something else than the letter (lower case, no spaces).
BAD_NAMES = (
    "d050000l", "dingbat", "standardsymbols", "symbol", "emoji", "ornament", "webding", "wingding",
    "biolinumkeyboard", "linbiolinum_k", "biolinumk", "ocrbx", "ocrbe", "museumfourteen", "setofont-ex",
    "lastresort", "adobeblank", "barcode", "braille", "mathtexgyre", "musical", "fontawesome", "bullets",
)  # fmt: skip
_STYLE_WORDS = """
thin hairline extralight ultralight light book regular medium semibold demibold demi bold extrabold ultrabold black
heavy italic oblique condensed semicondensed extracondensed narrow cond l m eb ub unhinted
"""
TEST_SHARE = 5  # one family in five is held out by ``font_split``


@dataclass(frozen=True)
class Face:
    """One face of a font file.

    Attributes:
        path: font file; empty for the face that Pillow brings along.
        index: position in a collection.
        family, style: names inside the file.
        characters: the wanted characters that the face draws properly.
    """

    path: str
    index: int
    family: str
    style: str
    characters: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def name(self) -> str:
        return f"{self.family} {self.style}".strip()

    @property
    def group(self) -> str:
        """The family without words of weight and width: "Lato Black" and "Lato" are one."""
        words = [w for w in self.family.split() if w.lower() not in _STYLE_WORDS.split()]
        return " ".join(words) or self.family

    def covers(self, text: str) -> bool:
        """Whether the face draws every character of ``text`` (spaces need no glyph)."""
        return self.characters.issuperset(text.replace(" ", ""))

    def held_out(self) -> bool:
        """Whether the face's family belongs to the ``test`` part of ``font_split``."""
        return zlib.crc32(self.group.encode()) % TEST_SHARE == 0


@lru_cache(maxsize=384)
def load(path: str, index: int, size: int) -> Any:
    """The Pillow font of a face at ``size`` px per em."""
    if path == DEFAULT:
        return ImageFont.load_default(size)
    # Basic layout: no dependence on libraqm, one glyph per character, also faster.
    return ImageFont.truetype(path, size, index, layout_engine=ImageFont.Layout.BASIC)


def system_directories() -> list[Path]:
    """Font directories of fontconfig, macOS and Windows that exist here."""
    home = Path.home()
    if sys.platform == "win32":
        places = [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"]
        places.append(Path(os.environ.get("LOCALAPPDATA", home)) / "Microsoft" / "Windows" / "Fonts")
    elif sys.platform == "darwin":
        places = [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    else:
        shares = os.environ.get("XDG_DATA_DIRS", "/usr/local/share:/usr/share").split(":")
        shares.append(os.environ.get("XDG_DATA_HOME", str(home / ".local" / "share")))
        places = [Path(share) / "fonts" for share in shares if share] + [home / ".fonts"]
    return [place for place in dict.fromkeys(places) if place.is_dir()]


def font_files(places: Iterable[str | Path]) -> list[Path]:
    """Font files among ``places`` and below those that are directories, sorted, one per file name."""
    found: dict[str, Path] = {}
    for place in map(Path, places):
        files = place.rglob("*") if place.is_dir() else [place]
        for file in sorted(files):
            if file.suffix.lower() in SUFFIXES and file.is_file():
                found.setdefault(file.name, file)
    return [found[name] for name in sorted(found)]


def draw(font: Any, text: str) -> tuple[np.ndarray, tuple[int, int]]:
    """The ink of ``text``, uint8 ``[h, w]``, and its left and top (px) from the pen on the baseline."""
    core, (left, top) = font.getmask2(text, "L", anchor="ls")
    if min(core.size) == 0:
        return np.zeros((0, 0), np.uint8), (left, top)
    image = Image.new("L", core.size)
    image.im.paste(core, (0, 0, *core.size))  # one call into FreeType; ImageDraw would make three
    return np.asarray(image), (left, top)


def mask(font: Any, text: str) -> np.ndarray:
    """The ink of ``text`` alone."""
    return draw(font, text)[0]


def _covered_by_drawing(font: Any, characters: Sequence[str]) -> list[str]:
    # For containers whose map is not read here: what looks like the missing-glyph box is missing.
    missing = mask(font, "\U0010fffd")
    return [c for c in characters if not np.array_equal(mask(font, c), missing)]


def _same_shape(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two glyphs are the same drawing, up to size (small capitals)."""
    if min(a.shape + b.shape) == 0:
        return False
    size = (24, 32)
    x, y = (np.asarray(Image.fromarray(m).resize(size), np.float32).ravel() for m in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return scale > 0 and float(x @ y) / scale > 0.93


def _caps_only(font: Any, covered: set[str]) -> bool:
    letters = [c for c in "aegrtbdq" if c in covered]
    same = sum(_same_shape(mask(font, c), mask(font, c.upper())) for c in letters)
    return bool(letters) and same >= 0.6 * len(letters)


def _empty(font: Any, covered: list[str]) -> set[str]:
    """Characters whose glyph has no ink.

    A sample is looked at first: faces leave whole blocks empty or nothing. What slips through is met
    with another face when it is laid out (``layout.EmptyGlyph``).
    """
    some = covered[:96:4] + covered[96 :: max(1, len(covered) // 64)]
    if all(mask(font, c).any() for c in some):
        return set()
    return {c for c in covered if not mask(font, c).any()}


@lru_cache(maxsize=4096)
def inspect_face(path: str, index: int, characters: str) -> Face | None:
    """The face with those of ``characters`` that it draws; None when it is broken or unfit."""
    try:
        font = load(path, index, 32)
        family, style = (str(part or "") for part in font.getname())
    except (OSError, ValueError, SyntaxError):
        return None
    plain = (family + Path(path).stem).lower().replace(" ", "")
    if any(bad in plain for bad in BAD_NAMES):
        return None
    if path == DEFAULT or path.endswith("woff2"):
        covered = set(_covered_by_drawing(font, characters))
    else:
        try:
            ids = glyph_ids(path, index, np.array([ord(c) for c in characters]))
        except NoCharacterMap:
            return None
        covered = {c for c, number in zip(characters, ids, strict=True) if number}
    covered -= _empty(font, sorted(covered))
    if _caps_only(font, covered):
        covered = {c for c in covered if not c.islower()}
    return Face(path, index, family, style, frozenset(covered)) if covered else None


def find_faces(characters: Iterable[str], fonts: str | Path | Sequence[str | Path] | None = None) -> list[Face]:
    """All usable faces that draw at least one of ``characters``, sorted by name.

    Args:
        fonts: None for the system's fonts; else font files, directories and family names (a family
            is looked up among the system's fonts), ``"system"`` to add all system fonts.

    Raises:
        ConfigError: an entry of ``fonts`` is neither a path nor an installed family.
    """
    wanted = "".join(sorted({c for c in characters if not c.isspace()}))
    entries = ["system"] if fonts is None else [fonts] if isinstance(fonts, (str, Path)) else list(fonts)
    paths = [e for e in entries if Path(e).expanduser().exists()]
    names = [str(e) for e in entries if e not in paths]
    chosen = _inspect_files(font_files(Path(p).expanduser() for p in paths), wanted)
    if names:
        system = _inspect_files(font_files(system_directories()), wanted)
        for name in names:
            low = name.lower()
            faces = [f for f in system if low in ("system", f.family.lower(), f.group.lower(), f.name.lower())]
            if not faces and low != "system":
                groups = sorted({f.group for f in system})
                close = nearest(name, groups)
                known = close.split('"')[1] if "Did you mean" in close else ", ".join(groups[:20])
                raise ConfigError(
                    f'fonts: "{name}" is no file, no directory and no installed family. Some here: {known}.'
                )
            chosen += faces
    return sorted(set(chosen), key=lambda f: (f.family, f.style, Path(f.path).name, f.index))


def _inspect_files(files: Iterable[Path], characters: str) -> list[Face]:
    faces = []
    for file in files:
        for index in range(min(face_count(file), 16)):
            face = inspect_face(str(file), index, characters)
            if face is not None:
                faces.append(face)
    return faces


def default_face(characters: Iterable[str]) -> Face | None:
    """The face inside Pillow (Latin letters only); None where Pillow was built without FreeType."""
    if not features.check("freetype2"):
        return None
    return inspect_face(DEFAULT, 0, "".join(sorted({c for c in characters if not c.isspace()})))
