"""Pages of ``tools/diagnose_rec.py``: every kind of system shows what it has, at the right places."""

import numpy as np
import pytest
import reading_case as case
import torch

from openrec.config import load_config
from openrec.diagnose.page import pages, write_page
from openrec.diagnose.panels import sections
from openrec.diagnose.told import Seen, look
from openrec.errors import ConfigError
from openrec.postprocess.base import Decoded
from openrec.reading.looking import explain
from openrec.recognizer import load
from openrec.shipping import pack, wordsets

Figure = pytest.importorskip("matplotlib.figure").Figure
Quiver = pytest.importorskip("matplotlib.quiver").Quiver
CONFIGS = case.ROOT / "configs" / "rec"
SHIPPED = pack.models(case.ROOT / "weights")
# tiny config -> sections that its pages must have (the beginning of their titles)
SYSTEMS = {
    "svtrv2/svtrv2_mamba": ["Sampling points of the encoder", "Step sizes", "What a step leaves", "Columns"],
    "svtrv2/svtrv2_mamba1d": ["Step sizes", "What a step leaves", "Columns"],
    "dat/dat": ["Sampling points of the encoder", "Attention of the encoder", "What a displacement adds", "Columns"],
    "dat/svtrv2_reattn": ["Attention of the encoder", "How re-attention mixes heads", "Columns"],
    "true2d/true2d": ["Attention of the encoder", "What a displacement adds", "Points read for each character"],
    "satrn/satrn": ["Attention of the encoder", "Attention for each character"],
    "attn/soft_attn": ["Sampling points of the encoder", "Attention for each character"],
    "attn/hard_attn": ["Attention for each character", "Points read for each character"],
    "attn/draw_attn": ["Attention for each character", "Grid and sigma of the Gaussians", "Boxes"],
    "attn/stn_soft_attn": ["Transform", "Attention for each character"],
    "attn/tps_soft_attn": ["Transform", "Attention for each character"],
    "dino/dino": ["Points read for each character", "Boxes"],
    "aster/aster_tps": ["Transform", "Attention for each character"],
}


@pytest.fixture()
def recognizer(tmp_path, request):
    """A model with random weights that reads something."""
    return load(case.checkpoint(tmp_path / "m.pth", load_tiny(request.param), seed=3), device="cpu")


def load_tiny(name):
    return load_config(CONFIGS / f"{name}_tiny.yml", ["Eval.dataset.size=2"])


@pytest.mark.parametrize(("recognizer", "wanted"), SYSTEMS.items(), ids=list(SYSTEMS), indirect=["recognizer"])
def test_every_system_shows_what_it_has(recognizer, wanted, tmp_path):
    recognizer.post_process.decode_detailed = _reads_something(recognizer)
    seen = look(recognizer, torch.rand(3, 32, 96) * 2 - 1, "a/word.png", "truth")
    titles = [section.title for section in sections(seen)]
    for title in wanted:
        assert any(t.startswith(title) for t in titles), titles
    assert write_page(seen, tmp_path / "page.png").stat().st_size > 10_000


def _reads_something(recognizer):
    """Random weights may read nothing, and then no character can be shown."""
    detailed = recognizer.post_process.decode_detailed
    return lambda *arguments: [d if d.text else Decoded("ab", 0.5, [0.4, 0.6], [0, 1]) for d in detailed(*arguments)]


@pytest.mark.parametrize(
    ("name", "words"), [("satrn/satrn", []), ("true2d/true2d_enc_nrtr_dec", ["Architecture.Encoder.out_rank=3"])]
)
def test_a_sequence_that_was_a_map_is_drawn_as_one(name, words, tmp_path):
    config = load_config(CONFIGS / f"{name}_tiny.yml", ["Eval.dataset.size=2", *words])
    recognizer = load(case.checkpoint(tmp_path / "m.pth", config, seed=3), device="cpu")
    recognizer.post_process.decode_detailed = _reads_something(recognizer)
    seen = look(recognizer, torch.rand(3, 32, 96) * 2 - 1)
    told = [module for module, arrays in seen.of("attn").items() if arrays[0].shape[-1] == 192]
    assert {module.split(".")[0] for module in told} == {"encoder", "decoder"}
    assert {seen.map_size(module, 192) for module in told} == {(8, 24)}
    found = explain(recognizer, np.zeros((32, 96, 3), np.uint8))
    assert [m.shape for m in found.maps] == [(8, 24)] * len(found.decoded.text) and found.maps


@pytest.mark.parametrize("recognizer", ["svtrv2/svtrv2_mamba"], indirect=True)
def test_pages_of_files_and_of_eval(recognizer, tmp_path):
    folder = case.write_pictures(tmp_path / "crops", 3, broken=(1,))
    made = list(pages(recognizer, tmp_path / "out", folder))
    assert [path.name if path else seen.reason.split()[0] for seen, path in made][::2] == ["000_000.png", "002_002.png"]
    assert made[1][1] is None
    made = list(pages(recognizer, tmp_path / "eval", None, count=1))
    assert len(made) == 1 and made[0][0].truth and made[0][1].exists()
    with pytest.raises(ConfigError, match="expected at least 1 page, got 0"):
        list(pages(recognizer, tmp_path / "eval", None, count=0))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write .*Choose another --output"):
        list(pages(recognizer, tmp_path / "file", folder))
    with pytest.raises(ConfigError, match="--images"):
        list(pages(recognizer, tmp_path / "eval", None, {"Eval": None}))


@pytest.mark.parametrize("recognizer", ["svtrv2/svtrv2_mamba"], indirect=True)
def test_looking_leaves_nothing_behind(recognizer):
    image = torch.rand(3, 32, 96) * 2 - 1
    first, second = look(recognizer, image), look(recognizer, image)
    assert first.decoded == second.decoded and all(p.grad is None for p in recognizer.model.parameters())
    assert all(getattr(m, "_listener", None) is None for m in recognizer.model.modules())
    scans = [m for m, k in first.told if k == "dt"]
    assert scans and first.columns.shape[1] == 37 and first.rectified is first.image
    assert [first.told[m, "dt"][0].shape[:2] for m in scans] == [(8, 24), (4, 24)]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda p: p.stem)
def test_pages_of_shipped_models(file, tmp_path):
    folder = case.ROOT / "tests" / "data" / "shipped" / file.stem
    name, text = wordsets.read_rows(folder)[0]
    ((seen, path),) = pages(load(file, device="cpu"), tmp_path, folder / name)
    assert path.exists() and seen.decoded.text == text
    assert seen.image.ndim == 3 and np.ptp(seen.image) > 50  # a picture, not its values cut off at 0 and 1


# ---- where a pattern lands: on a picture of 32 x 96 px a map of 4 x 24 has cells of 8 x 4 px -------------

FEATURES = {
    ("encoder.stages.0", "feature"): [np.zeros((8, 8, 24), np.float32)],
    ("encoder.stages.1", "feature"): [np.zeros((16, 4, 24), np.float32)],
    ("encoder", "feature"): [np.zeros((16, 4, 24), np.float32)],
}
PLACES = [(0, 0), (1, 5), (3, 23)]  # (row, column) of what the three steps look at


def one_hot(rows, columns):
    weights = np.zeros((len(PLACES), rows, columns), np.float32)
    for step, (row, column) in enumerate(PLACES):
        weights[step, row, column] = 1
    return weights


MAPS = one_hot(4, 24)
LISTS = MAPS.reshape(3, 96)


def seen_with(module, key, arrays, features=FEATURES):
    """Three characters read in a picture, during which ``module`` told ``arrays``."""
    decoded = Decoded("abc", 1.0, [1.0] * 3, [0, 1, 2])
    return Seen("", np.zeros((32, 96, 3), np.uint8), decoded, {**features, (module, key): arrays})


def brightest(draw):
    """Centre (x, y) in pixels of the brightest cell of a drawn map."""
    axis = Figure().subplots()
    draw(axis)
    values, (left, right, bottom, top) = axis.images[-1].get_array(), axis.images[-1].get_extent()
    row, column = np.unravel_index(values.argmax(), values.shape)
    across, down = (right - left) / values.shape[1], (bottom - top) / values.shape[0]
    return left + (column + 0.5) * across, top + (row + 0.5) * down


@pytest.mark.parametrize(
    "arrays",
    [
        pytest.param([MAPS], id="map"),
        pytest.param([0.74 * MAPS], id="map that sums to less than 1"),
        pytest.param([LISTS], id="list"),
        pytest.param([np.stack((LISTS, LISTS))], id="list of two heads"),
        pytest.param([LISTS[None, i : i + 1] for i in range(3)], id="step by step"),
        pytest.param([LISTS[None, : i + 1] for i in range(3)], id="with the steps before"),
    ],
)
def test_attention_lands_where_characters_look(arrays):
    (section,) = sections(seen_with("decoder.cross", "attn", arrays))
    assert [caption for caption, _ in section.cells] == ["a", "b", "c"] and not section.wide
    assert [brightest(draw) for _, draw in section.cells] == [(2, 4), (22, 12), (94, 28)]


def test_attention_to_a_sequence_is_one_row():
    features = {**FEATURES, ("encoder", "feature"): [np.zeros((24, 16), np.float32)]}  # the mean over the height
    (section,) = sections(seen_with("decoder.cross", "attn", [MAPS.max(1)], features))
    assert [brightest(draw) for _, draw in section.cells] == [(2, 16), (22, 16), (94, 16)]


@pytest.mark.parametrize(
    ("module", "key", "array", "place"),
    [
        ("encoder.stages.1.blocks.0.attn", "attn", np.repeat(LISTS[None, 1:2], 96, 1), (22, 12)),
        ("encoder.stages.0.blocks.0.attn", "attn", np.repeat(one_hot(8, 24)[1].reshape(1, 1, 192), 192, 1), (22, 6)),
        ("encoder.stages.1.blocks.0.mixer", "dt", MAPS[1, :, :, None].repeat(5, 2), (22, 12)),
        ("encoder.stages.1.blocks.0.mixer", "decay", MAPS[2, :, :, None, None].repeat(5, 2), (94, 28)),
    ],
)
def test_what_an_encoder_tells_lands_where_it_belongs(module, key, array, place):
    (section,) = sections(seen_with(module, key, [array]))
    assert [brightest(draw) for _, draw in section.cells] == [place]


def test_windows_lie_where_they_were_cut():
    module = "encoder.stages.0.blocks.0.attn"
    seen = seen_with(module, "attn", [np.full((12 * 3, 16, 16), 1 / 16, np.float32)])  # 12 windows of 4 x 4, 3 heads
    seen.told[module, "looked"] = [one_hot(8, 24)[1]]
    (section,) = sections(seen)
    assert [brightest(draw) for _, draw in section.cells] == [(22, 6)]


def test_grids_of_gaussians():
    seen = seen_with("decoder.read", "box", [np.float32([[0.25 * i, 0.5, 0.5, 0.5]]) for i in (1, 2, 3)])
    seen.told["decoder.read", "sigma"] = [np.float32([[0.125, 0.25]])] * 3
    section = next(s for s in sections(seen) if s.title.startswith("Grid and sigma"))
    for (_, draw), x in zip(section.cells, (24, 48, 72)):
        axis = Figure().subplots()
        draw(axis)
        grid, *around = axis.patches
        assert grid.get_bbox().bounds == (x - 24, 8, 48, 16)
        assert {e.center for e in around} == {(x - 24, 8), (x + 24, 8), (x - 24, 24), (x + 24, 24)}
        assert {(e.width, e.height) for e in around} == {(24, 16)}  # one sigma to each side


def test_importance_is_drawn_at_the_points_of_each_group():
    loc = np.array([[[[0.25, 0.5]], [[0.5, 0.5]]], [[[0.75, 0.5]], [[1.0, 0.5]]]], np.float32)  # 2 groups, 2 keys
    weights = np.zeros((4, 6, 2), np.float32)  # 4 heads, 6 queries
    weights[:2, :, 0] = weights[2:, :, 1] = 1
    told = {("encoder.attn", "loc"): [loc], ("encoder.attn", "attn"): [weights]}
    seen = Seen("", np.zeros((32, 96, 3), np.uint8), Decoded("", 0.0, [], []), told)
    axis = Figure().subplots()
    next(s for s in sections(seen) if s.title.startswith("Attention")).cells[0][1](axis)
    found = [(c.get_offsets().tolist(), c.get_sizes().tolist()) for c in axis.collections]
    assert found == [([[24, 16], [48, 16]], [60, 0]), ([[72, 16], [96, 16]], [0, 60])]


@pytest.mark.parametrize("module", ["w_atten_block.attn", "ctc_encoder.svtr_block.0.mixer", "layers.0.self_attn"])
def test_attention_of_a_sequence_to_itself_is_not_that_of_characters(module):
    told = {(f"decoder.{module}", "attn"): [np.full((2, 24, 24), 1 / 24, np.float32)]}
    seen = Seen("", np.zeros((32, 96, 3), np.uint8), Decoded("ab", 0.9, [0.9, 0.8], [0, 3]), told)
    assert not list(sections(seen))


def test_boxes_by_layer():
    layers = [np.full((4, 4), 0.2 + 0.1 * i, np.float32) for i in range(5)]
    told = {("decoder", "box"): layers, ("decoder", "score"): [np.array([0.9, 0.1, 0.2, 0.8], np.float32)]}
    seen = Seen("", np.zeros((32, 96, 3), np.uint8), Decoded("ab", 0.9, [0.9, 0.8], [0, 3]), told)
    (section,) = sections(seen)
    wanted = ["layer 0", "layer 1", "layer 2", "layer 3", "last", "score of the queries, 2 of 4 above 0.3"]
    assert [caption for caption, _ in section.cells] == wanted
    for (_, draw), arrows, bars in zip(section.cells, [0, 4, 4, 4, 4, 0], [0, 0, 0, 0, 0, 20]):
        axis = Figure().subplots()
        draw(axis)
        ways = [q for q in axis.collections if isinstance(q, Quiver)]
        assert len(ways) == arrows and len(axis.containers[0] if bars else []) == bars
        for way in ways:  # a tenth of 96 x 32 pixels, from the layer before
            np.testing.assert_allclose([way.U[0], way.V[0]], [9.6, 3.2], rtol=1e-4)


def test_points_of_an_encoder_inside_the_decoder_are_points_of_places():
    loc = np.full((1, 192, 4, 2), 0.5, np.float32)
    told = {("decoder.encoder_layers.0.attentions.0", "loc"): [loc], ("decoder.cross", "loc"): [loc[:, :5]]}
    seen = Seen("", np.zeros((32, 96, 3), np.uint8), Decoded("ab", 0.9, [0.9, 0.8], [0, 3]), told)
    first, second = sections(seen)
    assert first.title.startswith("Sampling points of the encoder") and len(first.cells) == 1
    assert second.title == "Points read for each character (decoder.cross)" and len(second.cells) == 2


def test_places_of_a_rectified_picture():
    ys, xs = np.meshgrid((np.arange(16) + 0.5) / 16, (np.arange(48) + 0.5) / 48, indexing="ij")
    flipped = np.stack((1 - xs, ys), -1).astype(np.float32)
    image = np.zeros((32, 96, 3), np.uint8)
    image[:, :48] = 255
    seen = Seen("", image, Decoded("", 0.0, [], []), {("transform", "grid"): [flipped]})
    assert seen.sees_input("transform.head") and not seen.sees_input("encoder")
    assert seen.rectified.shape == (16, 48, 3)
    assert seen.rectified[:, :20].max() == 0 and seen.rectified[:, 28:].min() == 255


def test_tool(tmp_path):
    case.checkpoint(tmp_path / "best.pth", load_tiny("svtrv2/svtrv2_mamba"))
    words = ["--model", tmp_path / "best.pth", "--output", tmp_path / "pages"]
    done = case.run_tool("diagnose_rec.py", *words, "--images", case.write_pictures(tmp_path / "crops", 2))
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "pages").glob("*.png"))) == 2 and done.stdout.count("\n") == 2
    (tmp_path / "bad.png").write_bytes(b"no picture")
    done = case.run_tool("diagnose_rec.py", *words, "--images", tmp_path / "bad.png")
    assert done.returncode == 1 and "could be read" in done.stderr and "not read" in done.stdout
