"""``tools/infer_rec.py``: command lines, result files, the page, broken pictures."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import reading_case as case
import yaml

from openrec.errors import ConfigError, DataError
from openrec.reading import inference, outputs, page
from openrec.reading.inputs import Source
from openrec.recognizer import Text, load


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a checkpoint, its YAML, and ten pictures of which one is broken."""
    folder = tmp_path_factory.mktemp("read")
    case.checkpoint(folder / "best.pth")
    config = case.config()
    config["Global"] |= {"output_dir": str(folder)}
    (folder / "run.yml").write_text(yaml.safe_dump(config))
    case.write_pictures(folder / "crops", 10, broken=(4,))
    return folder


def run(*words):
    return case.run_tool("infer_rec.py", *words)


def test_openocrs_command_line(place, tmp_path):
    """``--c`` and ``--o``, best.pth of the output directory, ./rec_results/rec_results.txt with three fields."""
    words = ["--c", place / "run.yml", "--o", f"Global.infer_img={place / 'crops'}"]
    done = subprocess.run(
        [sys.executable, case.ROOT / "tools/infer_rec.py", *words], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("\t") for line in (tmp_path / "rec_results/rec_results.txt").read_text().splitlines()]
    assert len(rows) == 10 and all(len(row) == 3 for row in rows)
    assert [row[0] for row in rows] == [str(place / "crops" / f"{i:03d}.png") for i in range(10)]
    assert rows[4][1:] == ["", "0.0"] and 0 < float(rows[0][2]) <= 1
    assert re.search(r"^0 \S+000\.png\t result: \w+\t0\.\d+, time cost: 0\.\d+$", done.stdout, re.M)
    assert "9 pictures read, 1 could not be read" in done.stdout
    assert re.search(r"not read: \S+004\.png: image (truncated|cannot be decoded)", done.stdout)


def test_no_yaml_is_needed(place, tmp_path):
    done = run("--model", place / "best.pth", "--images", place / "crops/00?.png", "--output", tmp_path / "r.jsonl",
               "--html", tmp_path / "r.html", "--batch-size", 3, "--workers", 2, "--quiet")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "result:" not in done.stdout
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [r["name"].rsplit("/", 1)[-1] for r in rows] == [f"{i:03d}.png" for i in range(10)]
    good = rows[0]
    assert len(good["char_scores"]) == len(good["char_x"]) == len(good["text"]) and good["size"] == [96, 32]
    assert rows[4]["error"] and rows[4]["text"] == ""
    assert (tmp_path / "r.html").read_text().count("<img src=") == 9


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "expected --model and --images, or -c CONFIG"),
        (("--model", "BEST"), "--images missing: expected --model and --images"),
        (("--model", "nowhere.pth", "--images", "x.png"), 'no model "nowhere.pth"'),
        (("-o", "Global.device=cpu", "--model", "m"), "-o changes a config"),
        (("-c", "RUN"), "Global.infer_img is empty"),
        (("--model", "BEST", "--images", "/nowhere/*.png"), "no file matches"),
        (("--model", "BEST", "--images", "/nowhere.png"), "not one picture could be read"),
        (("--model", "BEST", "--images", "CROPS", "--output", "/proc/no/r.txt"), "cannot write"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, message, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {"RUN": place / "run.yml", "BEST": place / "best.pth", "CROPS": place / "crops"}
    done = run(*(files.get(w, w) for w in words))
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr


def test_formats(tmp_path):
    texts = [Text("a\tb", 0.5, [0.4, 0.5, 0.6], [0.1, 0.5, 0.9], "x.png", (3, 4)), Text(name="y\n.png", error="broken")]
    for name in ("r.txt", "r.jsonl", "r.csv"):
        with outputs.ResultFile(tmp_path / name) as file:
            for text in texts:
                file.write(text)
    assert (tmp_path / "r.txt").read_text() == "x.png\ta b\t0.5\ny .png\t\t0.0\n"
    assert json.loads((tmp_path / "r.jsonl").read_text().splitlines()[0])["text"] == "a\tb"
    rows = list(csv.DictReader((tmp_path / "r.csv").open(newline="")))
    assert rows[0]["text"] == "a\tb" and json.loads(rows[0]["char_x"]) == [0.1, 0.5, 0.9]
    assert rows[1]["error"] == "broken" and rows[1]["width"] == ""
    assert outputs.format_of("r.out", "csv") == "csv"
    with pytest.raises(ConfigError, match="txt, jsonl, csv"):
        outputs.format_of("r.out", "xml")


def test_order_is_kept():
    assert list(outputs.in_order([(2, "c"), (0, "a"), (1, "b"), (3, "d")])) == list("abcd")


def test_page_is_whole_and_escaped(tmp_path):
    """One file without outside addresses; nothing in a name or text becomes markup."""
    evil = Text('<b>"&', 0.8, [0.9, 0.2, 0.9, 0.9, 0.9], None, '"><script>alert(1)</script>.png', (90, 30))
    picture = Source(evil.name, case.picture(1))
    with page.ResultPage(tmp_path / "r.html", "a <title>", "b & c", {evil.name: "<i>"}) as made:
        made.add(evil, picture)
        made.add(Text(name="gone.png", error="file <not> found"), Source("gone.png", "gone.png"))
    text = (tmp_path / "r.html").read_text()
    assert "<script>alert" not in text and "<b>" not in text and "<i>" not in text and "<not>" not in text
    assert "http" not in text and 'src="data:image/jpeg;base64,' in text
    assert "2 pictures, 1 could not be read, 0 of 1 known texts are right" in text
    assert text.count('<span style="border-color') == 4 + 5 and "true: &lt;i&gt;" in text


def test_page_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "LIMIT", 2)
    with page.ResultPage(tmp_path / "r.html", "t") as made:
        for i in range(5):
            made.add(Text("a", 1.0, [1.0], None, f"{i}.png", (9, 9)), Source("", case.picture(i)))
    text = (tmp_path / "r.html").read_text()
    assert text.count("<tr class") == 2 and "the last 3 are not shown" in text


def test_colors_run_from_red_to_green():
    assert page.color_of(0.2) == page.color_of(0.5) == "hsl(0 70% 45%)" and page.color_of(1.0).startswith("hsl(140")
    assert page.marked("ab", [0.5]) == "ab"  # scores that do not belong to the characters are not shown


def test_thumbnails_are_small():
    assert page.thumbnail(Source("x", "/nowhere.png")) == ""
    whole = page.data_address(case.picture(1, 2000, 1000))
    assert len(whole) < 30000


def test_true_texts_by_the_end_of_the_path(tmp_path):
    (tmp_path / "labels.tsv").write_text("crops/000.png\tword\n001.png\tother\n")
    names = ["/a/crops/000.png", "/a/crops/001.png", "/a/002.png"]
    assert inference.truths_of(tmp_path / "labels.tsv", names) == {names[0]: "word", names[1]: "other"}
    with pytest.raises(DataError, match="names none of the pictures"):
        inference.truths_of(tmp_path / "labels.tsv", ["x.png"])


def test_a_progress_bar_and_lines_do_not_mix(place, tmp_path, capsys):
    recognizer = load(place / "best.pth")
    inference.read_to_files(recognizer, place / "crops", tmp_path / "r.txt", bar=True)
    told = capsys.readouterr()
    assert "read:" in told.err and "result:" not in told.err and told.out.count("\n") == 10


def test_tally_of_lengths():
    tally = inference.Tally()
    for i in range(25):
        tally.add(Text(name=str(i), error="bad"))
    tally.add(Text("abc", 1.0, seconds=0.5))
    lines = tally.lines()
    assert lines[0].startswith("1 pictures read, 25 could not be read")
    assert lines[1].endswith("[0, 0, 0, 1]") and lines[2].endswith("[0.0, 0.0, 0.0, 500.0]")
    assert len(lines) == 3 + 20 + 1


@pytest.mark.slow
def test_twenty_thousand_pictures_with_broken_ones(place, tmp_path):
    """All others read, each failure named, memory flat."""
    import resource

    good = [str(p) for p in sorted((place / "crops").iterdir()) if p.name != "004.png"]
    bad = str(place / "crops" / "004.png")
    recognizer = load(place / "best.pth")
    names = [bad if i % 100 == 50 else good[i % len(good)] for i in range(20000)]
    wanted = {t.name: t.text for t in recognizer(good)}
    recognizer(names[:1000], batch_size=32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    texts = recognizer(names, batch_size=32)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert len(texts) == 20000 and sum(t.error is not None for t in texts) == 200
    assert all(t.text == wanted[t.name] for t in texts if t.error is None)
    assert all(t.name == bad for t in texts if t.error)
    assert grown < 120, f"{grown:.0f} MB"
    assert np.all([t.name == n for t, n in zip(texts, names)])
