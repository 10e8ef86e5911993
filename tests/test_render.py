"""Rendered words: reproducible, legible, labelled with what is drawn, on any machine."""

import hashlib
import logging
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ImageFont

from openrec.charset import Charset
from openrec.data.render import WordRenderer, camera, fonts, fontset, lexicon, sfnt
from openrec.data.render.bulk import contact_sheet, series, write_lmdb
from openrec.data.render.geometry import Warp, draw_warp
from openrec.data.render.layout import lay_out
from openrec.data.render.words import WordSource, held_out
from openrec.errors import ConfigError, SampleError

ROOT = Path(__file__).resolve().parents[1]
PRINTABLE = "".join(map(chr, range(33, 127)))


def rng(*key):
    return np.random.default_rng(key)


@pytest.fixture(scope="module")
def english():
    return WordRenderer(language="en", max_length=12)


@pytest.fixture(scope="module")
def hundred(english):
    return [english.render(rng(5, i)) for i in range(100)]


@pytest.fixture(params=["ko", "zh"])
def cjk(request):
    try:
        return WordRenderer(language=request.param, max_length=6)
    except ConfigError as error:
        assert fontset.PACKAGES[request.param] in str(error)
        pytest.skip(f"no font for {request.param}: {error}")


@pytest.fixture
def no_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "system_directories", list)
    monkeypatch.setattr(fontset, "system_directories", list)


# ---- the same everywhere ---------------------------------------------------------------------------


def test_same_seed_and_index_give_the_same_bytes(english):
    first = [english.render(rng(1, i)).jpeg for i in range(10)]
    english.render(rng(77, 0))  # what came before does not matter
    again = [english.render(rng(1, i)).jpeg for i in reversed(range(10))]
    assert first == again[::-1]
    assert len(set(first)) == 10
    assert english.render(rng(2, 0)).jpeg != first[0]


def test_another_process_gives_the_same_bytes(english):
    code = (
        "import hashlib, numpy as np; from openrec.data.render import WordRenderer\n"
        "r = WordRenderer(language='en', max_length=12)\n"
        "print(hashlib.sha256(b''.join(r.render(np.random.default_rng((1, i))).jpeg for i in range(6))).hexdigest())"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    here = hashlib.sha256(b"".join(english.render(rng(1, i)).jpeg for i in range(6))).hexdigest()
    assert out.stdout.strip() == here


def test_a_pickled_renderer_draws_the_same(english):
    copy = pickle.loads(pickle.dumps(english))
    assert copy.render(rng(3, 1)).jpeg == english.render(rng(3, 1)).jpeg


def test_a_series_does_not_depend_on_workers():
    renderer = WordRenderer("0123456789", "random", max_length=4)
    alone = [word.jpeg for word in series(renderer, 70, seed=4)]
    assert [word.jpeg for word in series(renderer, 70, seed=4, workers=1)] == alone


# ---- the picture -----------------------------------------------------------------------------------


def test_labels_are_what_the_face_can_draw(english, hundred):
    faces = {face.name: face for face in english.fonts.faces}
    for word in hundred:
        assert 1 <= len(word.text) <= 12
        assert faces[word.font].covers(word.text)


def test_boxes_lie_inside_and_run_left_to_right(hundred):
    for word in hundred:
        height, width = word.image.shape[:2]
        assert (width, height) == word.size
        assert word.boxes.shape == (len(word.text), 4) and word.boxes.dtype == np.float32
        assert (word.boxes >= 0).all()
        assert (word.boxes[:, [0, 2]] <= width).all() and (word.boxes[:, [1, 3]] <= height).all()
        assert (word.boxes[:, 2:] >= word.boxes[:, :2]).all()
        middles = word.boxes[:, [0, 2]].mean(1)
        assert (np.diff(middles) > -0.2 * height).all(), word.text


def test_boxes_lie_on_the_ink():
    # Black on white, undistorted: what is dark is inside the boxes.
    renderer = WordRenderer(language="en", strength=0.0, height=(48, 48))
    for text in ("WORD", "fig.", "A B"):
        word = renderer.render(rng(0, 3), text)
        grey = cv2.cvtColor(word.image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        edges = np.abs(np.diff(grey, axis=1)) > 40
        inside = np.zeros_like(edges)
        for x0, y0, x1, y1 in word.boxes.astype(int):
            inside[max(0, y0 - 2) : y1 + 3, max(0, x0 - 2) : x1 + 3] = True
        assert edges[inside].sum() > 0.95 * edges.sum()


def test_letters_stand_out(hundred):
    contrast = np.array([word.contrast for word in hundred])
    assert (contrast >= 24).mean() >= 0.98
    assert 40 < np.median(contrast) < 120
    assert min(word.image.std() for word in hundred) > 4


def test_an_illegible_picture_is_judged_so():
    ink = np.zeros((32, 64), np.float32)
    ink[8:24, 10:14] = ink[8:24, 30:34] = 255
    boxes = np.array([[10, 8, 14, 24], [30, 8, 34, 24]], np.float32)

    def judged(light, noise=0.0):
        grey = 100 + ink * (light / 255) + rng(0).normal(0, 1, ink.shape) * noise
        return camera.judge(np.dstack([grey] * 3 + [ink]).astype(np.float32), ink, boxes)

    assert judged(80).ok(24)
    assert not judged(10).ok(24)  # too faint
    assert not judged(30, noise=60).ok(24)  # drowned
    soft = np.dstack([cv2.GaussianBlur(100 + ink * 0.4, (0, 0), 6)] * 3 + [cv2.GaussianBlur(ink, (0, 0), 6)])
    assert not camera.judge(soft, ink, boxes).ok(24)


def test_statistics_are_near_those_of_street_words(english):
    words = [english.render(rng(8, i)) for i in range(250)]
    aspect = np.median([w.size[0] / w.size[1] for w in words])
    length = np.median([len(w.text) for w in words])
    saturation = np.median([cv2.cvtColor(w.image, cv2.COLOR_RGB2HSV)[..., 1].mean() for w in words])
    upper = np.mean([w.text.isupper() for w in words])
    # ICDAR 2015 training crops: 2.0, 5, 66, 0.54.
    assert 1.7 < aspect < 2.7 and 4 <= length <= 6 and 40 < saturation < 110 and 0.3 < upper < 0.65


@pytest.mark.parametrize("q", [1, 2, 4, 7])
def test_pictures_of_a_wanted_shape(english, q):
    for i in range(15):
        width, height = english.render(rng(9, i), aspect=(max(0.6, q - 0.5), q + 0.5)).size
        assert max(0.6, q - 0.5) - 0.06 <= width / height <= q + 0.56


def test_a_given_text_is_written(english):
    assert english.render(rng(0), "Hello7").text == "Hello7"
    assert english.render(rng(0), "a" * 60).size[0] <= 12 * 64
    with pytest.raises(SampleError, match="empty"):
        english.render(rng(0), " ")
    with pytest.raises(SampleError, match="no font draws"):
        english.render(rng(0), "a\u0e01")


def test_cjk_words(cjk):
    allowed = set(lexicon.default_characters(cjk.source.language))
    words = [cjk.render(rng(6, i)) for i in range(40)]
    assert all(set(word.text) <= allowed for word in words)
    script = set(lexicon.script_characters(cjk.source.language))
    assert sum(bool(script & set(word.text)) for word in words) > 25
    assert np.mean([word.contrast >= 24 for word in words]) > 0.9


# ---- geometry --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_remap_is_the_inverse_of_forward(seed):
    flat = np.zeros((60, 160), np.uint8)
    spots = rng(seed).uniform([20, 15], [140, 45], (5, 2)).round()
    warp = draw_warp(rng(seed, 1), (80.0, 30.0), (70.0, 20.0), 1.0)
    if seed % 2:
        warp.radius, warp.wave = 160.0 * (1 if seed % 4 == 1 else -1), (4.0, 0.04, 1.0)
    warp = warp.then(1.0, 1.0, 120.0, 90.0)
    for x, y in spots:
        flat[:] = 0
        flat[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] = 255
        seen = warp.remap(flat, 240, 180).astype(np.float64)
        rows, columns = np.mgrid[:180, :240]
        found = np.array([(seen * columns).sum(), (seen * rows).sum()]) / seen.sum()
        assert np.abs(found - warp.forward(np.array([x, y]))).max() < 0.7


def test_identity_warp_keeps_points():
    points = np.array([[3.0, 4.0], [10.0, -2.0]])
    assert np.allclose(Warp((1.0, 2.0)).forward(points), points - [1, 2])


# ---- fonts -----------------------------------------------------------------------------------------


def test_character_map_agrees_with_drawing():
    faces = [f for f in fonts.find_faces(PRINTABLE) if not f.path.endswith("woff2")][:6]
    if not faces:
        pytest.skip("no font on this system")
    codes = np.array([ord(c) for c in PRINTABLE + "가\uabcd\U0010fffd"])
    for face in faces:
        font = fonts.load(face.path, face.index, 24)
        missing = fonts.mask(font, "\U0010fffd")
        for code, number in zip(codes, sfnt.glyph_ids(face.path, face.index, codes), strict=True):
            same = np.array_equal(fonts.mask(font, chr(code)), missing)
            assert same == (number == 0), (face.name, chr(code))


def test_broken_font_files_are_left_out(tmp_path):
    (tmp_path / "a.ttf").write_bytes(b"no font at all, but long enough")
    (tmp_path / "b.otf").write_bytes(b"OTTO" + bytes(200))
    assert fonts.find_faces("abc", tmp_path) == []
    with pytest.raises(ConfigError, match="Install"):
        WordRenderer(fonts=tmp_path)


def test_faces_of_capitals_lose_their_small_letters():
    class Capitals:
        """Draws small letters as capitals, in a smaller size."""

        def __init__(self):
            self.big, self.small = ImageFont.load_default(32), ImageFont.load_default(24)

        def getmask2(self, text, mode, anchor):
            font = self.small if text.islower() else self.big
            return font.getmask2(text.upper(), mode, anchor=anchor)

    letters = set("abcdegqrtABCDEGQRT")
    assert fonts._caps_only(Capitals(), letters)
    assert not fonts._caps_only(ImageFont.load_default(32), letters)


def test_fonts_by_family_name_and_unknown_names():
    faces = fonts.find_faces(PRINTABLE)
    if not faces:
        pytest.skip("no font on this system")
    some = faces[0].family
    assert {f.family for f in fonts.find_faces(PRINTABLE, [some])} <= {f.family for f in faces}
    with pytest.raises(ConfigError, match="no installed family"):
        fonts.find_faces(PRINTABLE, ["No Such Family"])


def test_font_split_is_disjoint_by_family():
    groups = {f.group for f in fonts.find_faces(PRINTABLE)}
    parts = []
    for split in ("train", "test"):
        try:
            parts.append({f.group for f in fontset.FontSet(PRINTABLE, "en", None, split).faces})
        except ConfigError as error:
            assert "font families" in str(error) and len(groups) < 12
            parts.append(set())
    assert not parts[0] & parts[1]


def test_no_fonts_at_all(no_fonts, caplog):
    with caplog.at_level(logging.WARNING, "openrec"):
        renderer = WordRenderer(Charset.load())
    assert "Install" in caplog.text
    word = renderer.render(rng(0), "abc123")
    assert word.image.ndim == 3 and word.contrast >= 24


@pytest.mark.parametrize("language", ["ko", "zh"])
def test_a_script_without_font_names_the_package(no_fonts, language):
    with pytest.raises(ConfigError, match=fontset.PACKAGES[language].split()[0]):
        WordRenderer(language=language)


def test_layout_boxes_hold_the_ink():
    face = fonts.default_face(PRINTABLE)
    ink = lay_out(face, "a,b", 40, pad=5)
    rows, columns = np.nonzero(ink.mask)
    assert (columns.min(), columns.max() + 1) == (ink.boxes[:, 0].min(), ink.boxes[:, 2].max())
    assert (rows.min(), rows.max() + 1) == (ink.boxes[:, 1].min(), ink.boxes[:, 3].max())
    assert 1 < ink.stroke < 8


# ---- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [None, "model", "random"])
@pytest.mark.parametrize("characters", ["0123456789abcdefghijklmnopqrstuvwxyz", "ABC", "7", PRINTABLE + " "])
def test_texts_keep_to_the_characters_and_lengths(words, characters):
    source = WordSource(characters, words=words, min_length=2, max_length=8)
    for i in range(150):
        text = source.draw(rng(i))
        assert set(text) <= set(characters) and 2 <= len(text) <= 8 and text == text.strip()


def test_splits_are_disjoint_and_case_does_not_matter():
    texts = {}
    for split in ("train", "test"):
        source = WordSource(PRINTABLE, max_length=8, split=split)
        texts[split] = {source.draw(rng(i)).casefold() for i in range(400)}
    assert not texts["train"] & texts["test"]
    assert held_out("EXIT") == held_out("exit")


def test_a_word_file_is_written_as_it_stands(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("Zebra\t12\nAlpha\nAlpha's\ntoolongtoolong\nnaïve\n", encoding="utf-8")
    source = WordSource(PRINTABLE, words=path, max_length=10)
    assert {source.draw(rng(i)) for i in range(60)} == {"Zebra", "Alpha"}
    assert "2 usable" in source.found[0]
    with pytest.raises(ConfigError, match="none of the words"):
        WordSource("0123456789", words=path)
    with pytest.raises(ConfigError, match="cannot read"):
        WordSource(PRINTABLE, words=tmp_path / "missing.txt")


def test_scripts():
    assert len(lexicon.script_characters("ko")) == 2350
    assert len(lexicon.script_characters("zh")) == 3755
    assert all("가" <= lexicon.hangul_syllable(rng(i)) <= "힣" for i in range(50))
    assert all(len(lexicon.english_word(rng(i), n)) == n for i in range(20) for n in range(1, 15))
    for language in ("ko", "zh"):
        source = WordSource(lexicon.default_characters(language), language, max_length=5)
        assert len({source.draw(rng(i)) for i in range(100)}) > 60
        with pytest.raises(ConfigError, match="charset holds no"):
            WordSource("abc", language)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"language": "xx"}, "language"),
        ({"min_length": 3, "max_length": 2}, "min_length"),
        ({"height": (4, 20)}, "height"),
        ({"strength": 2}, "strength"),
        ({"word_split": "half"}, "split"),
        ({"font_split": "half"}, "font_split"),
        ({"characters": " "}, "no"),
    ],
)
def test_wrong_settings_say_what_is_wrong(arguments, message):
    with pytest.raises(ConfigError, match=message):
        WordRenderer(**arguments)


def test_a_case_folded_charset_is_drawn_in_both_cases():
    renderer = WordRenderer(Charset.load(), max_length=6)
    texts = "".join(renderer.source.draw(rng(i)) for i in range(60))
    assert any(c.isupper() for c in texts) and any(c.islower() for c in texts)
    assert set(texts.lower()) <= set(Charset.load().characters)


# ---- files -----------------------------------------------------------------------------------------


def test_words_into_an_lmdb(tmp_path):
    from openrec.data.create_lmdb import check

    renderer = WordRenderer("0123456789", "random", max_length=4)
    line = write_lmdb(renderer, tmp_path / "words", 30, seed=1, progress=False)
    assert "30 words" in line
    outcome = check(tmp_path / "words", progress=False)
    assert outcome.found == outcome.good == 30
    with pytest.raises(ConfigError, match="count"):
        write_lmdb(renderer, tmp_path / "none", 0)


def test_contact_sheet(tmp_path):
    contact_sheet(WordRenderer("0123456789", "random", max_length=4), tmp_path / "sheet.png", rows=2)
    assert cv2.imread(str(tmp_path / "sheet.png")).std() > 10


def run_tool(*arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["render_words.py", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / "tools" / "render_words.py"), run_name="__main__")
    return done.value.code, *capsys.readouterr()


def test_the_tool(tmp_path, monkeypatch, capsys):
    both = {"monkeypatch": monkeypatch, "capsys": capsys}
    code, out, err = run_tool("--output", tmp_path / "w", "--count", 20, "--words", "model", "--max-length", 5, **both)
    assert code == 0 and "20 words" in out, err
    code, out, err = run_tool("--sheet", tmp_path / "x.png", "--words", "nowhere.txt", **both)
    assert code == 1 and 'cannot read "nowhere.txt"' in err and not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sheet.xyz", r"expected a name that ends in \.png"),
        ("none/sheet.png", r"cannot write .*Choose another --sheet"),
    ],
)
def test_a_sheet_that_cannot_be_written(tmp_path, name, message):
    with pytest.raises(ConfigError, match=message):
        contact_sheet(WordRenderer("0123456789", "random", max_length=2), tmp_path / name)
