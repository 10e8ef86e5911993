"""Figures: matplotlib where it is installed, with fonts for the texts that a recogniser reads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from openrec.errors import ConfigError


@contextmanager
def drawing(texts: Iterable[str] = ()) -> Iterator[Any]:
    """Gives matplotlib's ``Figure``; what is drawn inside has letters for all of ``texts``, as far as this machine has.

    matplotlib's own font knows neither Hangul nor Chinese characters.

    Raises:
        ConfigError: matplotlib is missing.
    """
    try:
        from matplotlib import rc_context, rcParams
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("Pictures need matplotlib: pip install 'openrec[viz]'.") from error
    families = list(rcParams["font.family"])
    log = logging.getLogger("matplotlib.font_manager")  # it tells of each weight that the other font does not have
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        with rc_context({"font.family": families + _more_families("".join(sorted(set("".join(texts)))))}):
            yield Figure
    finally:
        log.setLevel(level)


@lru_cache(maxsize=64)
def _more_families(characters: str) -> list[str]:
    """A family of this machine that draws most of the ``characters`` that the default font lacks; of equals, a plain
    upright one."""
    from matplotlib.font_manager import FontProperties, findfont, fontManager

    known = _characters_of(findfont(FontProperties()))
    missing = {ord(c) for c in characters if c.isprintable()} - known
    entries = sorted(fontManager.ttflist, key=_plainness)
    best, drawn = [], 0
    for entry in entries if missing else ():
        count = len(missing & _characters_of(entry.fname)) if not _unfit(entry.name) else 0
        if count > drawn:
            best, drawn = [entry.name], count
        if drawn == len(missing):
            break
    return best


def _plainness(entry: Any) -> tuple[Any, ...]:
    sans = any(word in entry.name.lower() for word in ("sans", "gothic"))  # no brush, no serifs
    return not sans, entry.style != "normal", str(entry.weight) not in ("400", "normal"), entry.name


def _characters_of(path: str) -> set[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return set(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):  # listed by matplotlib, gone or broken since
        return set()


def _unfit(family: str) -> bool:
    from openrec.data.render.fonts import BAD_NAMES  # fonts that claim letters and draw something else

    return any(name in family.lower().replace(" ", "") for name in BAD_NAMES)
