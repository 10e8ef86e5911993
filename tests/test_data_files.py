"""``SimpleDataSet`` and ``MultiScaleDataSet`` (traps T26, T34, T64), collate."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from lmdb_helper import encoded, transforms

from openrec import registry
from openrec.charset import Charset
from openrec.data import Pick, Sample, Skipped, build_loader
from openrec.data.collate import collate
from openrec.data.simple_dataset import SimpleDataSet
from openrec.errors import ConfigError, DataError

CHARSET = Charset.load()
RESIZE = {"RecTVResize": {"image_shape": [32, 128]}}
AUG = {"PARSeqAugPIL": None}


def folder(tmp_path, n=12, extra=(), width=lambda i: 40 + 10 * i):
    lines = []
    for i in range(n):
        name = f"img_{i}.{'jpg' if i % 2 else 'png'}"
        (tmp_path / name).write_bytes(encoded(width(i), 24, i, "." + name.split(".")[1]))
        lines.append(f"{name}\tword{i}\t{width(i)}\t24")
    (tmp_path / "train.txt").write_text("\n".join([*lines, *extra]) + "\n", encoding="utf-8")
    return tmp_path


def config(root, name="SimpleDataSet", mode="Train", ops=None, sampler=None, loader=(), **more):
    section = {
        "dataset": {
            "name": name, "data_dir": str(root), "label_file_list": [str(root / "train.txt")],
            "transforms": ops or transforms(AUG, RESIZE), **more,
        },
        "loader": {"batch_size_per_card": 4, "shuffle": True, "drop_last": False, "num_workers": 0, **dict(loader)},
    }  # fmt: skip
    return {"Global": {}, mode: section | ({"sampler": sampler} if sampler else {})}


def test_simple_dataset_trains(tmp_path):
    bad = ["gone.png\tword", "no delimiter at all", "img_1.jpg\t", "img_1.jpg\t\u4e2d"]
    (tmp_path / "broken.jpg").write_bytes(encoded(50, 20)[:-50])
    root = folder(tmp_path, extra=[*bad, "broken.jpg\tbroken"])
    loader = build_loader(config(root, ext_op_transform_idx=2), "Train", charset=CHARSET)
    assert (loader.report.found, loader.report.used, loader.report.n_skipped) == (17, 14, 3)
    assert "line has no delimiter" in str(loader.report)
    epochs = [list(loader.epoch(e)) for e in (1, 2)]
    for batches in epochs:
        assert sorted(t for b in batches for t in b.texts) == sorted(f"word{i}" for i in range(12))
        reasons = {s.name.split("/")[-1]: s.reason for b in batches for s in b.skipped}
        assert reasons == {
            "gone.png": "image file cannot be read (No such file or directory)", "broken.jpg": "image truncated"
        }  # fmt: skip
        assert all(b.tensors[0].shape[1:] == (3, 32, 128) for b in batches)
    assert [b.names for b in epochs[0]] != [b.names for b in epochs[1]]  # T34


def test_simple_dataset_scores_everything(tmp_path):
    root = folder(tmp_path, 3, extra=["gone.png\tword", "img_1.jpg\t\u4e2d", "img_2.png"])
    loader = build_loader(config(root, mode="Eval", loader={"drop_last": True}.items()), "Eval", charset=CHARSET)
    (first, second) = loader.epoch(1)
    assert first.texts + second.texts == ["word0", "word1", "word2", "word", "\u4e2d", ""]
    assert first.unreadable + second.unreadable == [False, False, False, True, False, False]
    excluded = first.excluded + second.excluded
    assert excluded[:4] == [None] * 4 and all(excluded[4:])


def test_a_path_may_be_a_list(tmp_path):
    root = folder(tmp_path, 6)
    (root / "train.txt").write_text(json.dumps(["img_0.png", "img_5.jpg"]) + "\tword\n")
    args = (str(root), [str(root / "train.txt")], transforms(RESIZE))
    train, evaluation = (SimpleDataSet(*args, mode=m, charset=CHARSET) for m in ("Train", "Eval"))
    assert len({train[Pick(0, e)].values[0].tobytes() for e in range(20)}) == 2
    assert len({evaluation[Pick(0, e)].values[0].tobytes() for e in range(20)}) == 1
    (root / "train.txt").write_text("[broken\tword\n")
    broken = SimpleDataSet(*args, charset=CHARSET)[0]
    assert isinstance(broken, Skipped) and broken.reason == "path is not a JSON list of paths"


def test_subsets_and_delimiter(tmp_path):
    root = folder(tmp_path, 20)
    text = (root / "train.txt").read_text().replace("\t", ";")
    (root / "train.txt").write_text(text)
    loader = build_loader(config(root, delimiter=";", ratio_list=0.5), "Train", charset=CHARSET)
    seen = [frozenset(t for b in loader.epoch(e) for t in b.texts) for e in (1, 2, 3)]
    assert all(len(s) == 10 for s in seen) and len(set(seen)) == 3 and loader.report.used == 10


def test_missing_label_file(tmp_path):
    folder(tmp_path)
    bad = config(tmp_path)
    bad["Train"]["dataset"]["label_file_list"] = [str(tmp_path / "labels" / "rain.txt")]
    with pytest.raises(DataError, match=r"cannot be read \(No such file.*exists and holds: img_0.png"):
        build_loader(bad, "Train", charset=CHARSET)
    bad = config(tmp_path)
    del bad["Train"]["loader"]["batch_size_per_card"]
    with pytest.raises(ConfigError, match="batch_size_per_card"):
        build_loader(bad, "Train", charset=CHARSET)


@pytest.mark.parametrize("ds_width", [False, True])
def test_multi_scale(tmp_path, ds_width):
    root = folder(tmp_path, 20, extra=["img_0.png\tword0\t0\t24"] if ds_width else ())
    sampler = {
        "name": "MultiScaleSampler", "scales": [[320, 32], [320, 48], [320, 64]], "first_bs": 4, "fix_bs": False,
        "divided_factor": [8, 16], "is_training": True,
    }  # fmt: skip
    cfg = config(root, "MultiScaleDataSet", ops=transforms(AUG), sampler=sampler, ds_width=ds_width)
    loader = build_loader(cfg, "Train", charset=CHARSET)  # T26: could not be built
    batches = list(loader.epoch(1))
    assert sum(len(b) for b in batches) == 20
    sizes = {tuple(b.tensors[0].shape[2:]) for b in batches}
    assert {h for h, _ in sizes} == {32, 48, 64}
    assert ds_width or {w for _, w in sizes} == {320}
    assert loader.report.n_skipped == ds_width


# -- collate ----------------------------------------------------------------------------------------


def test_collate_normalises_and_types():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    items = [Sample([image, 3, 0.5, np.array(7)], "a", "n", weight=0.5), Skipped("m", "why", 0.5)]
    batch = collate(items)
    expected = ((torch.from_numpy(image).permute(2, 0, 1).float() / 255) - 0.5) / 0.5
    assert torch.equal(batch.tensors[0], expected[None]) and batch.weight == 0.5
    assert [t.dtype for t in batch.tensors] == [torch.float32, torch.int64, torch.float64, torch.int64]
    assert batch.skipped == items[1:] and batch.names == ["n"] and len(batch) == 1
    assert collate(items[1:]).tensors == [] and len(collate(items[1:])) == 0
    grey = collate([Sample([image[..., 0]], "a", "n")]).tensors[0]
    assert grey.shape == (1, 1, 2, 3)


def test_collate_widths_and_mistakes(caplog):
    registry._warned.clear()
    images = [np.ones((3, 4, w), np.float32) for w in (5, 7)]
    out = collate([Sample([i], "a", "n") for i in images]).tensors[0]
    assert out.shape == (2, 3, 4, 7) and out[0, :, :, 5:].abs().sum() == 0
    assert "different widths" in caplog.text
    wrong = [np.zeros((4, w, 3), np.uint8) for w in (5, 7)]
    with pytest.raises(DataError, match=r"different shapes: \(4, 5, 3\) \(first\)"):
        collate([Sample([i], "a", n) for i, n in zip(wrong, ("first", "second"))])
    with pytest.raises(DataError, match="first sample: n"):
        collate([Sample([images[0], np.zeros(n)], "a", "n") for n in (2, 3)])
