"""``openrec.load`` and ``Recognizer``: what can be read, that nothing is lost, that it equals the evaluation."""

import shutil
import tracemalloc

import cv2
import lmdb
import numpy as np
import pytest
import reading_case as case
import torch
from PIL import Image
from safetensors.torch import save_file

import openrec
from openrec.charset import Charset
from openrec.checkpoint import read_checkpoint, save_checkpoint
from openrec.data import build_loader
from openrec.errors import CheckpointError, ConfigError, DataError
from openrec.reading.loading import ModelCard
from openrec.reading.preprocessing import Preprocessor
from openrec.recognizer import Recognizer, load


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return case.checkpoint(tmp_path_factory.mktemp("model") / "best.pth")


@pytest.fixture(scope="module")
def recognizer(weights):
    return load(weights, device="cpu")


def test_load_is_part_of_the_package(weights):
    assert openrec.load(weights).card.charset == Charset.load()
    with pytest.raises(AttributeError, match="reed"):
        openrec.reed  # noqa: B018


def test_every_kind_of_input_reads_the_same(recognizer, tmp_path):
    folder = case.write_pictures(tmp_path / "crops", 3)
    files = sorted(folder.iterdir())
    arrays = [cv2.imread(str(f))[..., ::-1] for f in files]
    wanted = [t.text for t in recognizer(folder)]
    assert len(set(wanted)) == 3
    for images in (
        [str(f) for f in files],
        files,
        str(folder / "*.png"),
        arrays,
        [Image.open(f) for f in files],
        [f.read_bytes() for f in files],
        [files[0], arrays[1], Image.open(files[2])],
    ):
        assert [t.text for t in recognizer(images)] == wanted
    assert [t.text for t in recognizer([a[..., ::-1] for a in arrays], color="BGR")] == wanted
    assert recognizer(files[0])[0].text == wanted[0]
    assert recognizer(Image.open(files[1]))[0].text == wanted[1]
    assert recognizer(arrays[2])[0].text == wanted[2]
    same = np.stack([arrays[0], arrays[0]])
    assert [t.text for t in recognizer(same)] == [wanted[0]] * 2


def test_a_text_tells_scores_and_places(recognizer, tmp_path):
    folder = case.write_pictures(tmp_path / "crops", 4)
    for text in recognizer(folder):
        assert len(text.char_scores) == len(text.char_x) == len(text.text) > 0
        assert text.score == pytest.approx(np.mean(text.char_scores), abs=1e-6)
        assert text.char_x == sorted(text.char_x) and text.char_x[0] > 0 and text.char_x[-1] < 1
        assert text.name.endswith(".png") and text.error is None and str(text) == text.text
    assert recognizer(folder)[1].size == (40, 40)
    assert recognizer(folder)[0].as_dict()["name"].endswith("000.png")


def test_batches_do_not_change_the_result(recognizer, tmp_path):
    folder = case.write_pictures(tmp_path / "crops", 17)
    alone = recognizer(folder, batch_size=1)
    for batch_size, workers in ((4, 0), (64, 0), (4, 3)):
        together = recognizer(folder, batch_size=batch_size, workers=workers)
        assert [t.text for t in together] == [t.text for t in alone]
        np.testing.assert_allclose([t.score for t in together], [t.score for t in alone], atol=1e-5)


def test_no_picture_meets_padding(recognizer, tmp_path):
    """Every batch has one bucket's size, and each picture fills it."""
    seen = []

    class Spy:
        name = "spy"

        def run(self, images):
            seen.append(images.shape)
            return recognizer.backend.run(images)

    spy = Recognizer(recognizer.card, Spy())
    spy(case.write_pictures(tmp_path / "crops", 12), batch_size=8)
    assert {s[2:] for s in seen} == {(40, 112), (64, 64), (48, 96), (32, 128)}
    assert {s[2:] for s in seen} == {(h, w) for w, h in recognizer.preprocess.shapes()}
    assert sum(s[0] for s in seen) == 12 and len(seen) == 4


def test_equals_the_evaluation_data(tmp_path):
    """The numbers that reach the model are those that evaluation gives it, bit for bit."""
    folder = case.write_pictures(tmp_path / "crops", 9)
    with lmdb.open(str(tmp_path / "lmdb"), map_size=1 << 22) as env, env.begin(write=True) as txn:
        for i, file in enumerate(sorted(folder.iterdir()), 1):
            txn.put(b"image-%09d" % i, file.read_bytes())
            txn.put(b"label-%09d" % i, b"word")
        txn.put(b"num-samples", b"9")
    for padding in (False, True):
        content = case.config(Eval__dataset__data_dir_list=[str(tmp_path / "lmdb")], Eval__dataset__padding=padding)
        loader = build_loader(content, "Eval", charset=Charset.load())
        theirs = {}
        for batch in loader.epoch(1):
            theirs |= {name.split(":")[1]: image.numpy() for name, image in zip(batch.names, batch.tensors[0])}
        loader.close()
        prepare = Preprocessor.from_config(content)
        from openrec.reading.batches import Item, stack

        for i, file in enumerate(sorted(folder.iterdir()), 1):
            prepared = prepare(file.read_bytes())
            mine = stack([Item(0, "", (1, 1), prepared.image, prepared.valid)])[0]
            np.testing.assert_array_equal(mine, theirs[f"image-{i:09d}"])


@pytest.mark.parametrize(
    "op",
    [
        {"SVTRResize": {"image_shape": [3, 32, 96]}},
        {"RecTVResize": {"image_shape": [32, 96], "padding": True}},
        {"RecDynamicResize": {"image_shape": [32, 96]}},
        {"SliceTVResize": {}},
    ],
    ids=lambda op: next(iter(op)),
)
def test_resizing_transforms(op, tmp_path):
    content = case.config(Eval__dataset={"name": "SimpleDataSet", "transforms": [
        {"DecodeImage": {"img_mode": "BGR"}}, {"CTCLabelEncode": None}, op,
        {"KeepKeys": {"keep_keys": ["image", "label", "length"]}}]})  # fmt: skip
    recognizer = load(case.checkpoint(tmp_path / "m.pth", content))
    folder = case.write_pictures(tmp_path / "crops", 6)
    texts = recognizer(folder, batch_size=2)
    assert len(texts) == 6 and all(t.error is None and t.text for t in texts)
    assert [t.text for t in recognizer(folder, batch_size=1)] == [t.text for t in texts]
    again = Preprocessor.from_state(recognizer.preprocess.state())
    data = (folder / "001.png").read_bytes()
    np.testing.assert_array_equal(again(data).image, recognizer.preprocess(data).image)


def test_positions_leave_padding_out(tmp_path):
    """A picture that fills half of a padded input has its characters in its own whole width."""
    content = case.config(Eval__dataset={"name": "SimpleDataSet", "transforms": [
        {"DecodeImagePIL": {}}, {"RecTVResize": {"image_shape": [32, 128], "padding": True}},
        {"KeepKeys": {"keep_keys": ["image"]}}]})  # fmt: skip
    recognizer = load(case.checkpoint(tmp_path / "m.pth", content))
    prepared = recognizer.preprocess(case.picture(3, 64, 32))
    assert prepared.valid == 0.5
    assert max(recognizer(case.picture(3, 64, 32))[0].char_x) > 0.6


def test_a_broken_picture_stops_nothing(recognizer, tmp_path):
    folder = case.write_pictures(tmp_path / "crops", 8, broken=(2, 5))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    images = [*sorted(folder.iterdir()), tmp_path / "missing.png", np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4))]
    texts = recognizer(images, batch_size=4)
    errors = {t.name.split("/")[-1]: t.error for t in texts if t.error}
    assert len(texts) == len(images) == 13 and len(errors) == 7
    assert "truncated" in errors["002.png"] or "decoded" in errors["002.png"]
    assert errors["empty.png"] == "file is empty" and errors["missing.png"] == "file not found"
    assert "no pixels" in errors["image 11"] and "uint8" in errors["image 12"]
    assert all(t.text for t in texts if not t.error) and all(not t.text for t in texts if t.error)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tiff", ".webp"])
def test_damaged_files_never_raise(suffix, recognizer, tmp_path):
    """Cut, overwritten and shuffled files either read as something or have an error."""
    import io

    whole = io.BytesIO()
    Image.fromarray(case.picture(1)).save(whole, suffix.removeprefix(".").replace("jpg", "jpeg"))
    data, rng = whole.getvalue(), np.random.default_rng(0)
    files = [data[: len(data) * i // 12] for i in range(12)]
    for _ in range(40):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 12)):
            broken[place] = rng.integers(0, 256)
        files.append(bytes(broken))
    texts = recognizer([*files, data])
    assert len(texts) == 53 and texts[0].error == "file is empty" and texts[-1].text
    assert all(t.error is None or 0 < len(t.error) < 200 for t in texts)


def test_a_huge_picture_gets_a_polite_message(recognizer, tmp_path):
    huge = tmp_path / "huge.png"
    Image.new("1", (8660, 5774)).save(huge)  # 50 megapixels
    text, good = recognizer([huge, case.picture(1)])
    assert text.error.startswith("image has 50.0 megapixels (8660 x 5774)")
    assert "max_pixels" in text.error and good.text
    assert recognizer(case.picture(1), max_pixels=100)[0].error


def test_a_decompression_bomb_is_refused(recognizer, tmp_path, monkeypatch):
    Image.new("1", (400, 400)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert recognizer(tmp_path / "bomb.png")[0].error == "image is far too large; cut out the word or the line"


def test_warm_up_computes_every_size(recognizer):
    seen = []
    spy = Recognizer(recognizer.card, type("Spy", (), {"name": "spy", "run": lambda _, x: seen.append(x.shape)})())
    spy.warm_up(2)
    assert seen == [(2, 3, 64, 64), (2, 3, 48, 96), (2, 3, 40, 112), (2, 3, 32, 128)]


def test_a_line_too_long_for_a_dynamic_width(tmp_path):
    content = case.config(Eval__dataset={"name": "SimpleDataSet", "transforms": [
        {"DecodeImagePIL": {}}, {"RecDynamicResize": {"image_shape": [32, 96]}},
        {"KeepKeys": {"keep_keys": ["image"]}}]})  # fmt: skip
    recognizer = load(case.checkpoint(tmp_path / "m.pth", content))
    assert "too long a line" in recognizer(np.zeros((2, 4000, 3), np.uint8))[0].error


def test_bad_arguments_say_what_was_expected(recognizer, tmp_path):
    with pytest.raises(DataError, match="holds no picture"):
        recognizer(tmp_path)
    with pytest.raises(DataError, match="no file matches"):
        recognizer(str(tmp_path / "*.png"))
    with pytest.raises(DataError, match="got int"):
        recognizer([3])
    with pytest.raises(ConfigError, match="RGB or BGR"):
        recognizer(case.picture(1), color="GBR")
    with pytest.raises(ConfigError, match="batch_size"):
        recognizer(case.picture(1), batch_size=0)
    with pytest.raises(ConfigError, match="max_pixels: expected at least 1, got 0"):
        recognizer(case.picture(1), max_pixels=0)
    assert recognizer([]) == []


def test_progress_is_told(recognizer):
    told = []
    recognizer([case.picture(i) for i in range(5)], progress=told.append)
    assert len(told) == 5


def test_memory_stays_flat(recognizer):
    """What is held grows with the results only, a few hundred bytes each."""
    import itertools

    image = case.picture(1, 64, 64)
    names = list(itertools.repeat(image, 400))
    recognizer(names[:40], batch_size=8)
    tracemalloc.start()
    recognizer(names, batch_size=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # 400 prepared pictures alone would be 20 MB


def test_many_widths_do_not_pile_up(recognizer):
    from openrec.reading.batches import Item, grouped
    from openrec.reading.inputs import Source

    made = [0, 0]

    def prepare(number, source):
        made[0] += 1
        return Item(number, source.name, (1, 1), np.zeros((3, 8, 8 + number), np.float32), 1.0)

    waiting = 0
    for group in grouped([Source(str(i), None) for i in range(300)], prepare, 4):
        made[1] += len(group.items)
        waiting = max(waiting, made[0] - made[1])
    assert made == [300, 300] and waiting <= 64


# ---- files -----------------------------------------------------------------------------------------


def test_names_in_a_weights_folder(weights, tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    shutil.copy(weights, tmp_path / "weights" / "small-en.pth")
    monkeypatch.chdir(tmp_path)
    assert load("small-en").name.endswith("small-en.pth")
    with pytest.raises(CheckpointError, match='Did you mean "small-en"'):
        load("smal-en")
    monkeypatch.setenv("OPENREC_WEIGHTS", str(weights.parent))
    assert load("best").name.endswith("best.pth")


def test_the_directory_of_a_run(weights):
    assert load(weights.parent).name == str(weights)
    with pytest.raises(CheckpointError, match=r"without best\.pth"):
        load(weights.parent.parent)


def test_safetensors_with_metadata(weights, tmp_path):
    state = read_checkpoint(weights)
    card = ModelCard.from_checkpoint(state, "m")
    save_file(state["state_dict"], str(tmp_path / "m.safetensors"), card.metadata())
    image = case.picture(4)
    loaded = load(tmp_path / "m.safetensors")
    assert loaded(image)[0].text == load(weights)(image)[0].text
    assert set(loaded.card.config) == {"Global", "Architecture", "PostProcess"}
    save_file(state["state_dict"], str(tmp_path / "bare.safetensors"))
    with pytest.raises(CheckpointError, match=r"does not say what it reads.*config="):
        load(tmp_path / "bare.safetensors")
    assert load(tmp_path / "bare.safetensors", config=case.config())(image)[0].text == loaded(image)[0].text


def test_a_bare_state_dict_needs_a_config(weights, tmp_path):
    torch.save(read_checkpoint(weights)["state_dict"], tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match="holds weights and no config"):
        load(tmp_path / "bare.pth")
    assert load(tmp_path / "bare.pth", config=case.config())(case.picture(1))[0].text


def test_averaged_weights_are_used(weights, tmp_path):
    state = read_checkpoint(weights)
    average = {k: v * 0 for k, v in state["state_dict"].items()}
    save_checkpoint({**state, "ema": {"state_dict": average}}, tmp_path / "ema.pth")
    assert not any(bool(p.any()) for p in load(tmp_path / "ema.pth").model.parameters())


def test_what_does_not_fit_is_told(weights, tmp_path):
    state = read_checkpoint(weights)
    other = case.config(Architecture__Encoder={**case.config()["Architecture"]["Encoder"], "dims": [8, 16, 32]})
    with pytest.raises(CheckpointError, match="does not fill the model"):
        load(weights, config=other)
    save_checkpoint({**state, "config": {}}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="holds weights and no config"):
        load(tmp_path / "none.pth")
    with pytest.raises(ConfigError, match="kept its guide"):
        load(weights, branch="gtc")
    with pytest.raises(ConfigError, match="expected auto, ctc or gtc"):
        load(weights, branch="both")
    with pytest.raises(ConfigError, match="device"):
        load(weights, device="toaster")


def test_a_checkpoint_without_its_characters(weights, tmp_path):
    """As OpenOCR writes them: the dictionary that the config names is used."""
    state = read_checkpoint(weights)
    state.pop("charset")
    save_checkpoint(state, tmp_path / "old.pth")
    assert load(tmp_path / "old.pth").charset == Charset.load()
    state["config"]["Global"]["character_dict_path"] = "gone.txt"
    save_checkpoint(state, tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match=r"(?s)dictionary its config names cannot be read.*gone\.txt"):
        load(tmp_path / "gone.pth")


def test_an_exported_backend_goes_through_the_same_door(recognizer, tmp_path, monkeypatch):
    """The protocol: a class called with (path, device), its ``metadata`` and ``run``."""
    import sys
    import types

    class Fake:
        name = "fake"

        def __init__(self, path, device):
            self.metadata = recognizer.card.metadata()

        def run(self, images):
            assert images.dtype == np.float32 and images.flags.c_contiguous
            return recognizer.backend.run(images).numpy()

    module = types.ModuleType("openrec.export.onnx_session")
    module.OnnxBackend = Fake
    monkeypatch.setitem(sys.modules, "openrec.export.onnx_session", module)
    (tmp_path / "m.onnx").write_bytes(b"")
    exported = load(tmp_path / "m.onnx")
    assert exported(case.picture(5))[0].text == recognizer(case.picture(5))[0].text
    with pytest.raises(ConfigError, match="runs as fake"):
        exported.model  # noqa: B018
