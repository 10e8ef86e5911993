"""Dictionaries from named sets."""

import pytest
import reading_case as case

from openrec.charset import Charset
from openrec.dictionary import SETS, characters_of, write_dictionary
from openrec.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "count", "some"),
    [
        ("korean", 11172, "가각힣뷁"),
        ("korean-2350", 2350, "가각힝"),
        ("chinese", 6763, "啊的齄"),
        ("chinese-3755", 3755, "啊的座"),
        ("kanji", 6355, "亜熙"),
        ("alnum", 36, "0az"),
        ("latin", 184, "éßŁŞ"),
        ("jamo", 51, "ㄱㅏㅣ"),
    ],
)
def test_sets(name, count, some):
    characters = SETS[name][1]()
    assert len(characters) == len(set(characters)) == count
    assert set(some) <= set(characters)


def test_the_common_syllables_are_a_part_of_all():
    assert set(SETS["korean-2350"][1]()) < set(SETS["korean"][1]())
    assert "뷁" not in SETS["korean-2350"][1]()


def test_ascii_is_the_dictionary_that_comes_along():
    assert tuple(characters_of(["ascii"])) == Charset.load("tools/utils/EN_symbol_dict.txt").characters


def test_every_set_holds_single_visible_characters():
    for name, (_, make) in SETS.items():
        assert all(len(c) == 1 and c.isprintable() and not c.isspace() for c in make()), name


def test_what_labels_hold_is_added_once_and_composed(tmp_path):
    found = characters_of(["digits"], "a0", ["b 1", "가"])
    assert found == [*"0123456789", "a", "b", "가"]
    write_dictionary(tmp_path / "new" / "d.txt", found)
    assert Charset.load(tmp_path / "new" / "d.txt").characters == tuple(found)


def test_unknown_set_and_nothing():
    with pytest.raises(ConfigError, match='"klingon" is no set'):
        characters_of(["klingon"])
    with pytest.raises(ConfigError, match="no characters"):
        characters_of([])


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r'cannot write ".*file/d\.txt" \(.*\)\. Choose another --output'):
        write_dictionary(tmp_path / "file" / "d.txt", "ab")


def test_tool(tmp_path):
    (tmp_path / "labels.tsv").write_text("a.png\té b\nb.png\t1\n", encoding="utf-8")
    done = case.run_tool(
        "make_dict.py", "--output", tmp_path / "d.txt", "--sets", "digits", "--labels", tmp_path / "labels.tsv"
    )
    assert done.returncode == 0 and "12 characters" in done.stdout and "use_space_char" in done.stdout
    assert (tmp_path / "d.txt").read_text(encoding="utf-8").split() == [*"0123456789", "b", "é"]
    assert "korean-2350     2350" in case.run_tool("make_dict.py", "--list").stdout
