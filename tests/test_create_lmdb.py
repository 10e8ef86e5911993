"""Writing and checking LMDBs (trap T48)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lmdb_helper import encoded, words, write_lmdb

from openrec.data.annotations import read_annotations
from openrec.data.create_lmdb import LmdbWriter, check, convert
from openrec.data.lmdb_env import LmdbReader
from openrec.errors import DataError

ROOT = Path(__file__).resolve().parents[1]


def pairs(path, text, **more):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [(a.path, a.label) if not a.problem else a.problem for a in read_annotations(path, **more)]


def test_list_formats(tmp_path):
    file = tmp_path / "labels.txt"
    assert pairs(file, "a.jpg\tone\nb b.png\ttwo words\r\n\n") == [("a.jpg", "one"), ("b b.png", "two words")]
    assert pairs(file, "a.jpg one\nd/b.png two words\n") == [("a.jpg", "one"), ("d/b.png", "two words")]
    assert pairs(file, "a.jpg\tone\nb.jpg\ttab\tinside\nc.jpg\tx\n")[1] == ("b.jpg", "tab\tinside")
    assert pairs(file, "a.jpg\tone\tsrc\nb.jpg\ttwo\tsrc\n") == [("a.jpg", "one"), ("b.jpg", "two")]
    assert pairs(file, "image\tlabel\na.jpg\t label \n") == [("a.jpg", " label ")]
    assert pairs(file, b"\xef\xbb\xbfa.jpg\tx\nb.jpg\t\xff\njust text\n") == [
        ("a.jpg", "x"), "line is not UTF-8", "line has no tab between path and label"
    ]  # fmt: skip
    assert pairs(file, "") == []


def test_csv_and_json_lines(tmp_path):
    file = tmp_path / "labels.csv"
    assert pairs(file, 'a.jpg,one\nb.jpg,"two, three"\nc.jpg\n') == [
        ("a.jpg", "one"), ("b.jpg", "two, three"), "line has too few columns"
    ]  # fmt: skip
    assert pairs(file, 'id,Text,Filename\n1,"a ""b""",a.jpg\n') == [("a.jpg", 'a "b"')]
    assert pairs(file, 'a.jpg,"tab\there"\n') == [("a.jpg", "tab\there")]
    file = tmp_path / "labels.jsonl"
    lines = (
        '{"image": "a.jpg", "label": "one\\ttab"}\n["b.jpg", "two"]\n{"file_name": "c.jpg", "text": "x"}\n{]\n{"a": 1}'
    )
    assert pairs(file, lines) == [
        ("a.jpg", "one\ttab"), ("b.jpg", "two"), ("c.jpg", "x"), "line is not JSON",
        "line has no text values for image and label",
    ]  # fmt: skip
    with pytest.raises(DataError, match="expected one of"):
        read_annotations(file, "xml")
    with pytest.raises(DataError, match="cannot be read"):
        read_annotations(tmp_path / "none.txt")


def folder(tmp_path, n=5, extra=()):
    for i in range(n):
        (tmp_path / f"{i}.jpg").write_bytes(encoded(60 + i, 20, i))
    (tmp_path / "cut.jpg").write_bytes(encoded(90, 30)[:-60])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "labels.txt").write_text("".join(f"{i}.jpg\tword {i}\n" for i in range(n)) + "\n".join(extra))
    return tmp_path


def test_convert_and_check(tmp_path):
    bad = ["cut.jpg\tx", "empty.png\tx", "gone.jpg\tx", "0.jpg\t", "0.jpg\t" + "y" * 801]
    root = folder(tmp_path, extra=bad)
    outcome = convert(root, root / "labels.txt", tmp_path / "db", progress=False)
    assert (outcome.found, outcome.good) == (10, 5)
    assert {reason: count for reason, (count, _) in outcome.problems.items()} == {
        "image truncated": 1, "image is empty": 1, "image file cannot be read (No such file or directory)": 1,
        "label is empty": 1, "label is longer than 800 characters": 1,
    }  # fmt: skip
    assert "line 8 gone.jpg: x" in str(outcome)
    reader = LmdbReader(tmp_path / "db")
    assert reader.num_samples() == 5 and reader.label(2).decode() == "word 1"
    assert reader.image(5) == (root / "4.jpg").read_bytes() and reader.get(b"wh-000000005") == b"64_20"
    assert sorted(os.listdir(tmp_path / "db")) == ["data.mdb"]
    good = check(tmp_path / "db", progress=False)
    assert good.good == 5 and not good.problems and "label length: 6 to 6" in str(good)


def test_check_finds_every_problem(tmp_path):
    records = words(8)
    image, label, size = records[0]
    records[0] = (image[:-50], label, size)
    records[1] = (None, label, size)
    records[2] = (image, None, size)
    records[3] = (image, b"\xff", size)
    records[4] = (image, "", size)
    records[5] = (image, label, (1, 1))
    outcome = check(write_lmdb(tmp_path / "db", records, count=7), progress=False)
    assert outcome.good == 1 and set(outcome.problems) == {
        "image truncated", "image key is missing", "label key is missing", "label is not UTF-8", "label is empty",
        "wh key differs from the image", "keys beyond num-samples",
    }  # fmt: skip


def test_an_existing_directory_is_kept(tmp_path):
    root = folder(tmp_path)
    convert(root, root / "labels.txt", tmp_path / "db", progress=False)
    before = (tmp_path / "db" / "data.mdb").read_bytes()
    with pytest.raises(DataError, match="--overwrite"):
        convert(root, root / "labels.txt", tmp_path / "db", progress=False)
    with pytest.raises(DataError, match="no usable sample"):
        (root / "bad.txt").write_text("gone.jpg\tx\n")
        convert(root, root / "bad.txt", tmp_path / "db", overwrite=True, progress=False)
    with pytest.raises(ZeroDivisionError), LmdbWriter(tmp_path / "db", overwrite=True) as writer:
        writer.put(b"x", "y", 1, 1)
        raise ZeroDivisionError
    assert (tmp_path / "db" / "data.mdb").read_bytes() == before
    LmdbReader(tmp_path / "db").num_samples()  # open in this process while it is replaced
    with LmdbWriter(tmp_path / "db", overwrite=True) as writer:  # no stale keys
        assert writer.put(encoded(40, 20), "new", 40, 20) == 1
    reader = LmdbReader(tmp_path / "db")
    assert reader.num_samples() == 1 and reader.image(2) is None
    with pytest.raises(DataError, match="holds more than an LMDB"), LmdbWriter(root, overwrite=True):
        pass
    with pytest.raises(DataError, match="is a file"), LmdbWriter(root / "0.jpg"):
        pass
    assert not [p for p in os.listdir(tmp_path) if "partial" in p]


def test_the_map_grows(tmp_path, monkeypatch):
    monkeypatch.setattr("openrec.data.create_lmdb.FIRST_MAP_SIZE", 1 << 16)
    with LmdbWriter(tmp_path / "deep" / "db") as writer:
        for i in range(2500):
            writer.put(bytes([i % 256]) * 500, f"label {i}", 1, 1)
    reader = LmdbReader(tmp_path / "deep" / "db")
    assert reader.num_samples() == 2500 and reader.image(2500) == bytes([2499 % 256]) * 500


FULL = """
import resource, signal, sys
from openrec.data.create_lmdb import LmdbWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
from openrec.errors import DataError
try:
    with LmdbWriter(sys.argv[1]) as writer:
        for i in range(5000):
            writer.put(b"x" * 1000, "label", 1, 1)
except DataError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit to play a full disk with")
def test_a_full_disk_leaves_nothing(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path / "db")], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert "failed after" in run.stdout and "Nothing was kept" in run.stdout, run.stderr
    assert os.listdir(tmp_path) == []


def test_the_tool(tmp_path):
    root = folder(tmp_path)
    tool = [sys.executable, str(ROOT / "tools" / "create_lmdb_dataset.py")]
    steps = [
        (["--labels", str(root / "labels.txt"), "--output", str(root / "db")], 0, "5 good"),
        (["--labels", str(root / "labels.txt"), "--output", str(root / "db")], 1, "--overwrite"),
        (["--check", str(root / "db")], 0, "5 records, 5 good, 0 problems"),
        (["--check", str(root / "dc")], 1, "does not exist"),
    ]
    for args, status, message in steps:
        run = subprocess.run(tool + args, capture_output=True, text=True, timeout=60)
        assert run.returncode == status and message in run.stdout + run.stderr, run.stderr
        assert "Traceback" not in run.stderr
