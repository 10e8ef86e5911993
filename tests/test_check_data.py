"""What the data check finds: every kind of fault planted once."""

import json

import cv2
import numpy as np
import pytest
import reading_case as case
from lmdb_helper import encoded, picture, write_lmdb

from openrec.charset import Charset
from openrec.data.check import advise, check_set, look_of, records_of, same_pictures
from openrec.data.check_report import Findings, write
from openrec.errors import ConfigError, DataError


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files with one fault each beside four good ones, and a test set that shares a picture."""
    root = tmp_path_factory.mktemp("words")
    for name in ("train", "test"):
        (root / name).mkdir()
    base = picture(96, 32, 1)
    files = {
        "good0.png": (encoded(96, 32, 10, ".png"), "cafe"),
        "good1.png": (encoded(96, 32, 11, ".png"), "Hello"),
        "cut.png": (encoded(96, 32, 12, ".png")[:80], "cut"),
        "void.png": (b"", "void"),
        "empty.png": (encoded(96, 32, 13, ".png"), "  "),
        "long.png": (encoded(600, 32, 14, ".png"), "abcdefghijklmnopqrstuvwxyz"),
        "outside.png": (encoded(96, 32, 15, ".png"), "né"),
        "all.png": (encoded(96, 32, 16, ".png"), "éé"),
        "edge.png": (encoded(96, 32, 17, ".png"), " ab"),
        "hidden.png": (encoded(96, 32, 18, ".png"), "a\u200bb"),
        "jamo.png": (encoded(96, 32, 19, ".png"), "\u1112\u1161\u11ab"),
        "tall.png": (encoded(20, 80, 20, ".png"), "abc"),
        "tiny.png": (encoded(20, 5, 21, ".png"), "ab"),
        "crowd.png": (encoded(40, 40, 22, ".png"), "aabbccddeeffgg"),
        "first.png": (png(base), "same"),
        "again.png": (png(base), "same"),
        "other.png": (png(base), "else"),
        "small.jpg": (
            cv2.imencode(".jpg", cv2.resize(base, (72, 24), interpolation=cv2.INTER_AREA))[1].tobytes(),
            "same",
        ),
    }
    for name, (data, _) in files.items():
        (root / "train" / name).write_bytes(data)
    lines = [f"{name}\t{label}" for name, (_, label) in files.items()] + ["gone.png\tgone", "no tab here"]
    (root / "train" / "labels.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "test" / "t0.png").write_bytes(encoded(96, 32, 50, ".png"))
    (root / "test" / "t1.jpg").write_bytes(encoded(96, 32, 11, ".jpg"))
    (root / "test" / "labels.tsv").write_text("t0.png\tfine\nt1.jpg\thello\n", encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def report(folder):
    return check_set("train", records_of(folder / "train" / "labels.tsv"), Charset.load(), 25, workers=2)


def names(report, part):
    return {name for name, reason, _ in report.rows if part in reason}


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("truncated", {"cut.png"}),
        ("image is empty", {"void.png"}),
        ("label is empty", {"empty.png"}),
        ("longer than 25", {"long.png"}),
        ("holds characters outside", {"outside.png", "edge.png", "hidden.png"}),
        ("no character of the label", {"all.png", "jamo.png"}),
        ("begins or ends with a space", {"edge.png"}),
        ("control or invisible", {"hidden.png"}),
        ("composed form", {"jamo.png"}),
        ("vertical", {"tall.png"}),
        ("smaller than", {"tiny.png"}),
        ("more columns", {"crowd.png"}),
        ("cannot be read", {"gone.png"}),
        ("no tab", {"labels.tsv:20"}),
    ],
)
def test_every_fault_is_named(report, part, expected):
    assert names(report, part) == expected


def test_the_rest_is_good(report):
    faulty = {name for name, _, _ in report.rows}
    assert report.records == 20 and report.good == 20 - len(faulty)
    assert not faulty & {"good0.png", "good1.png", "first.png", "again.png"}
    assert report.unknown["é"] == 3


def test_pictures_that_occur_twice(report):
    found = {(p.first.name, p.second.name): p.same for p in same_pictures(report.seen)}
    assert found == {
        ("first.png", "again.png"): True,
        ("first.png", "other.png"): True,  # with another label
        ("first.png", "small.jpg"): False,
    }


def test_leaks(report, folder):
    test = check_set("test", records_of(folder / "test" / "labels.tsv"))
    assert [(p.first.name, p.second.name) for p in same_pictures(report.seen, test.seen)] == [("good1.png", "t1.jpg")]


def test_words_that_look_alike_are_no_leak():
    """Two prints of two words, and even pictures, which have no look."""
    a, b = np.full((32, 96, 3), 255, np.uint8), np.full((32, 96, 3), 255, np.uint8)
    assert look_of(a) == 0
    cv2.putText(a, "north", (4, 24), 0, 0.8, (0, 0, 0), 2)
    cv2.putText(b, "south", (4, 24), 0, 0.8, (0, 0, 0), 2)
    assert (look_of(a) ^ look_of(b)).bit_count() > 6


def test_advice(report):
    advice = advise([report])
    assert "é" in advice.characters and " " not in advice.characters and advice.use_space_char
    assert advice.max_text_length == 26 and 4 <= advice.max_ratio <= 25
    assert "é" in advice.rare


def test_lmdb(tmp_path):
    good = [(encoded(64, 32, i), f"word{i}", (64, 32)) for i in range(3)]
    path = write_lmdb(
        tmp_path / "set" / "a", [*good, (b"no picture", "x", None), (None, "y", None), (good[0][0], b"\xff", None)]
    )
    report = check_set("set", records_of(tmp_path / "set"))
    reasons = {name.rsplit("-", 1)[-1]: reason for name, reason, _ in report.rows}
    assert report.records == 6 and report.good == 3, path
    assert "cannot be decoded" in reasons["000000004"] and reasons["000000005"] == "image key is missing"
    assert reasons["000000006"] == "label is not UTF-8"


def test_nothing_there(tmp_path):
    with pytest.raises(DataError):
        list(records_of(tmp_path / "none"))
    (tmp_path / "l.tsv").write_text("")
    with pytest.raises(DataError, match="no record"):
        check_set("l", records_of(tmp_path / "l.tsv"))


def test_tool(folder, tmp_path):
    pytest.importorskip("matplotlib")
    words = ("--train", folder / "train" / "labels.tsv", "--test", folder / "test" / "labels.tsv", "--alphanumeric")
    done = case.run_tool("check_data.py", *words, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "LEAK" in done.stdout and "1 of them with two labels" in done.stdout and "suggested dictionary" in done.stdout
    )
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert list(content["leaks"].values()) == [1] and content["train"][0]["records"] == 20
    table = (tmp_path / "problems.tsv").read_text(encoding="utf-8")
    assert "t1.jpg\tis in training: good1.png" in table and "again.png\toccurs twice: first.png" in table
    assert "é" in Charset.load(tmp_path / "dictionary.txt").characters
    for name in ("ratios.png", "lengths.png"):
        image = cv2.imread(str(tmp_path / name))
        assert image is not None and image.std() > 10
    assert case.run_tool("check_data.py", *words, "--strict").returncode == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r'cannot write ".*file/report" \(.*\)\. Choose another --out\.'):
        write(Findings([], []), tmp_path / "file" / "report")
