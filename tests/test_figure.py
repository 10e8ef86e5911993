"""Figures have letters for the texts that are read."""

import warnings

import pytest

from openrec.errors import ConfigError
from openrec.figure import _more_families, drawing

font_manager = pytest.importorskip("matplotlib.font_manager")
HANGUL, HAN = "한글", "汉字"


@pytest.fixture()
def fonts(monkeypatch):
    """Sets the fonts that matplotlib knows of."""

    def of(*names):
        entries = [e for e in font_manager.fontManager.ttflist if not names or e.name in names]
        monkeypatch.setattr(font_manager.fontManager, "ttflist", entries)
        _more_families.cache_clear()

    yield of
    monkeypatch.undo()
    _more_families.cache_clear()


def missing(text, path):
    """What matplotlib complains of while it draws."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with drawing([text]) as figure_type:
            figure = figure_type()
            figure.suptitle(text)
            figure.savefig(path)
    return [str(w.message) for w in told if "missing from font" in str(w.message)]


@pytest.mark.parametrize("text", [HANGUL, HAN, "word " + HANGUL])
def test_letters_come_from_another_font_of_the_machine(text, tmp_path):
    (family,) = _more_families(text) or pytest.skip("no font with these letters on this machine")
    assert family != "DejaVu Sans" and missing(text, tmp_path / "a.png") == []


@pytest.mark.parametrize("text", ["", "abc", "é 1\t\n"])
def test_the_default_font_is_enough_for_most(text, tmp_path):
    assert _more_families(text) == [] and missing(text.strip(), tmp_path / "a.png") == []


def test_without_such_a_font_the_rest_is_drawn(fonts, tmp_path):
    fonts("DejaVu Sans")
    assert _more_families(HANGUL) == []
    assert len(missing(HANGUL, tmp_path / "a.png")) >= len(HANGUL) and (tmp_path / "a.png").exists()


def test_fonts_that_draw_something_else_and_broken_ones_are_left_out(fonts, tmp_path):
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    fonts("DejaVu Sans")
    best = font_manager.fontManager.ttflist[0].fname
    for name, path in (("Noto Emoji", best), ("Broken", str(broken)), ("Gone", str(tmp_path / "gone.ttf"))):
        font_manager.fontManager.ttflist.append(font_manager.FontEntry(fname=path, name=name))
    assert _more_families(HANGUL) == []


def test_without_matplotlib_the_repair_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'openrec\[viz\]'"), drawing():
        pass
