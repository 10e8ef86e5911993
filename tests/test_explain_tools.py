"""Where a model looked: columns, attention, boxes, gradients, sampling points; the page and its tool."""

import numpy as np
import pytest
import reading_case as case
import torch

from openrec.modeling.record import record
from openrec.postprocess.base import Decoded
from openrec.reading import word_page
from openrec.reading.looking import Explanation, Points, _from_attention, _Heard, _over_map, explain
from openrec.recognizer import load

MAMBA = {
    "name": "SVTRv2Mamba", "max_sz": [32, 128], "use_pos_embed": False, "dims": [16, 16, 32], "depths": [1, 1, 1],
    "num_heads": [1, 1, 1], "head_dim": 16, "mixer": [["Conv"], ["Mamba"], ["Mamba"]], "feat2d": True,
    "final_norm": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("m") / "m.pth"
    return load(case.checkpoint(path, case.config(Architecture__Encoder=MAMBA)), device="cpu")


def test_columns_rows_and_scan(recognizer):
    found = explain(recognizer, case.picture(1, 128, 32))
    text = recognizer(case.picture(1, 128, 32))[0]
    assert found.decoded.text == text.text
    assert found.decoded.char_scores == pytest.approx(text.char_scores, abs=1e-4)
    assert len(found.frames) == 32 and found.tokens[0] == "blank" and len(found.tokens) == 37
    for p, character, score in zip(found.decoded.positions, text.text, text.char_scores):
        assert found.tokens[found.frames[p][0]] == character
        assert found.frames[p][1] == pytest.approx(score, abs=1e-4)
    assert found.source.startswith("RCTC") and len(found.maps) == len(text.text)
    for p, one in zip(found.decoded.positions, found.maps):
        assert one.max() == pytest.approx(1) and one[:, p].max() > 0
    assert [p.module for p in found.points] == [
        "encoder.stages.1.blocks.0.token_mixer.da_scan", "encoder.stages.2.blocks.0.token_mixer.da_scan"]  # fmt: skip
    for points in found.points:  # zero offsets: every place is its own position
        np.testing.assert_allclose(
            points.places[:, :, 0], np.broadcast_to(points.origins, points.places[:, :, 0].shape)
        )
    assert found.image.shape == (32, 128, 3)
    assert recognizer.explain(case.picture(1, 128, 32)).decoded.text == text.text


def test_offsets_are_pixels_of_the_map(recognizer):
    scan = next(m for m in recognizer.model.modules() if type(m).__name__ == "Dynamic_Adaptive_Scan")
    with torch.no_grad():
        scan.offset.bias[0] = 2.0  # dx of the first group
    try:
        points = explain(recognizer, case.picture(1, 128, 32)).points[0]
    finally:
        torch.nn.init.zeros_(scan.offset.bias)
    width = len(np.unique(points.origins[:, 0]))
    moved = points.places[0, :, 0] - points.origins
    np.testing.assert_allclose(moved, np.broadcast_to([2 / width * scan.offset_scale, 0], moved.shape), atol=1e-6)


def test_nothing_stays_behind(recognizer):
    hooks = sum(len(m._forward_hooks) for m in recognizer.model.modules())
    explain(recognizer, case.picture(1))
    assert sum(len(m._forward_hooks) for m in recognizer.model.modules()) == hooks
    assert all(getattr(m, "_listener", None) is None for m in recognizer.model.modules())
    assert all(p.grad is None for p in recognizer.model.parameters())


def test_threads_do_not_mix(recognizer):
    """A server explains and reads with one model at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    pictures = [case.picture(i, 128, 32) for i in range(12)]
    wanted = [t.text for t in recognizer(pictures)]
    with ThreadPoolExecutor(4) as pool:
        explained = [pool.submit(explain, recognizer, p) for p in pictures]
        read = [pool.submit(recognizer, p) for p in pictures]
        assert [f.result()[0].text for f in read] == wanted
        for future, text in zip(explained, wanted):
            found = future.result()
            assert found.decoded.text == text and len(found.maps) == len(text) and len(found.points) == 2


def test_gradients_where_a_decoder_tells_nothing(tmp_path):
    neck = {"dims": 16, "depth": 1, "hidden_dims": 16, "num_heads": 2}
    content = case.config(Architecture__Decoder={"name": "CTCDecoder", "svtr_encoder": neck})
    recognizer = load(case.checkpoint(tmp_path / "m.pth", content))
    found = explain(recognizer, case.picture(2, 128, 32))
    assert "gradient" in found.source and len(found.maps) == len(found.decoded.positions) > 0
    assert found.maps[0].shape == (4, 32) or found.maps[0].ndim == 2
    assert all(m.min() >= 0 and m.max() <= 1 for m in found.maps)
    assert not explain(recognizer, case.picture(2, 128, 32), gradients=False).maps


def test_attention_told_step_by_step_or_at_once():
    heard = _Heard()
    for step in range(3):
        weights = torch.zeros(1, 2, 1, 8)  # heads, one query, 2 x 4 places
        weights[..., step] = 1
        heard.rows.append(("decoder.a", "attn", weights))
    heard.rows.append(("decoder.self", "attn", torch.ones(1, 3, 3)))  # over steps, not over the picture
    maps = _from_attention(heard, 3, (2, 4))
    assert maps.shape == (3, 2, 4) and [int(m.argmax()) for m in maps] == [0, 1, 2]
    heard.rows.append(("decoder.b", "attn", torch.rand(1, 5, 2, 4)))
    assert _from_attention(heard, 3, (2, 4)).shape == (5, 2, 4)  # the last module that tells
    assert _from_attention(heard, 6, (2, 4)) is None
    assert _over_map(np.zeros((3, 7)), (2, 4)) is None


def test_boxes_and_grids_of_modules_that_tell(recognizer, monkeypatch):
    """A decoder that finds characters, behind a transform: both through ``record``."""
    model = recognizer.model
    forward = type(model).forward

    def telling(self, x, data=None):
        record(self.decoder, "box", torch.tensor([[[0.2, 0.5, 0.1, 0.8]] * 40]))
        ys, xs = torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 16), indexing="ij")
        record(self.encoder, "grid", torch.stack((xs, ys), -1)[None])
        return forward(self, x, data)

    monkeypatch.setattr(type(model), "forward", telling)
    monkeypatch.setattr(recognizer, "frames", lambda *_: None)
    found = explain(recognizer, case.picture(1))
    assert len(found.boxes) == len(found.decoded.positions) and found.grid.shape == (8, 16, 2)
    text = word_page.page(found)
    assert "Transform" in text and text.count('fill="none" stroke="hsl') == len(found.boxes)


@pytest.mark.parametrize("transform", [{"name": "STN"}, {"name": "TPS", "num_fiducial": 8}], ids=["STN", "TPS"])
def test_a_transform_is_shown(transform, tmp_path):
    """An untrained transform changes (almost) nothing: what the encoder sees is the input."""
    recognizer = load(case.checkpoint(tmp_path / "m.pth", case.config(Architecture__Transform=transform)))
    found = explain(recognizer, case.picture(1, 128, 32))
    assert found.grid.shape == (32, 128, 2) and (found.fiducials is None or found.fiducials.shape[1] == 2)
    assert np.abs(found.seen.astype(int) - found.image).mean() < 2
    assert "sampling grid" in word_page.page(found)


def test_windows_of_a_line(tmp_path):
    content = case.config(Eval__dataset={"name": "SimpleDataSet", "transforms": [
        {"DecodeImagePIL": {}}, {"SliceTVResize": {}}, {"KeepKeys": {"keep_keys": ["image"]}}]})  # fmt: skip
    recognizer = load(case.checkpoint(tmp_path / "m.pth", content))
    picture = case.picture(3, 400, 32)
    found = explain(recognizer, picture)
    assert found.decoded.text == recognizer(picture)[0].text and not found.maps
    assert "tells nothing" in word_page.page(found)


def test_page_holds_all_parts_and_escapes():
    image = case.picture(1, 64, 32)
    found = Explanation(
        "<x>.png", Decoded("<a", 0.5, [0.4, 0.6], [0, 2]), image, [(1, 0.4), (0, 0.9), (2, 0.6), (2, 0.5)],
        ["blank", "<", "a"], [np.eye(4), np.ones((4, 4))], "a test",
        [], [Points("encoder.stages.0.x", np.full((1, 4, 1, 2), 0.5), np.zeros((4, 2)))], valid=0.5,
    )  # fmt: skip
    text = word_page.page(found)
    assert "&lt;x&gt;.png" in text and "<x>" not in text and "<a<" not in text
    for part in ("Column by column", "Where each character was looked at", "Sampling points", "50 % of the width"):
        assert part in text
    assert text.count("<circle") == 4 and text.count("<rect") == 4
    empty = word_page.page(Explanation("e", Decoded("", 0.0, [], []), image))
    assert "(nothing)" in empty


def test_many_points_are_thinned():
    places = np.random.default_rng(0).uniform(0, 1, (8, 4000, 1, 2))
    text = word_page._dots(Explanation("", Decoded("", 0, [], []), case.picture(1)), Points("m", places))
    assert text.count("<circle") <= 7000


def test_tool(tmp_path):
    case.checkpoint(tmp_path / "best.pth", case.config(Architecture__Encoder=MAMBA))
    case.write_pictures(tmp_path / "crops", 3, broken=(1,))
    words = ["--model", tmp_path / "best.pth", "--images", tmp_path / "crops"]
    done = case.run_tool("explain_rec.py", *words, "--output", tmp_path / "pages")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "pages").iterdir()) == ["000_000.html", "002_002.html"]
    assert "001.png\tnot read: image" in done.stdout and done.stdout.count("\n") == 3
    done = case.run_tool("infer_rec.py", *words, "--output", tmp_path / "r.txt", "--explain", tmp_path / "also")
    assert done.returncode == 0 and len(list((tmp_path / "also").iterdir())) == 2
