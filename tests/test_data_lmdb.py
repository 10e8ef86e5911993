"""LMDB data sets, their loader and their reports (traps T2, T5, T17-T19, T42, T43, T48, T49, T63)."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
import torch
from lmdb_helper import CTC, encoded, ratio_config, transforms, words, write_lmdb

from openrec.charset import Charset
from openrec.data import Pick, Skipped, build_loader
from openrec.data.lmdb_dataset import LMDBDataSet, LMDBDataSetTest
from openrec.data.lmdb_env import LmdbReader
from openrec.data.openocr_rule import clean_label, exclusion
from openrec.data.ratio_dataset import RatioDataSet, RatioDataSetTest, RatioDataSetTVResize, RatioDataSetTVResizeTest
from openrec.errors import ConfigError, DataError

CHARSET = Charset.load()
AUG = ({"PARSeqAugPIL": None},)
RESIZE = {"RecTVResize": {"image_shape": [32, 128]}}


def load(config, mode, epoch=1, start=0, **more):
    loader = build_loader(config, mode, charset=CHARSET, **more)
    batches = list(loader.epoch(epoch, start))
    loader.close()
    return loader, batches


def broken_records(n=400):
    """``n`` records, of which every hundredth is broken in one of eight ways; the numbers by reason."""
    records = words(n)
    reasons = {}
    for turn, at in enumerate(range(7, n, 50)):
        image, label, size = records[at]
        kind = (
            "image truncated", "image key is missing", "label key is missing", "label is not UTF-8",
            "label is empty", "image cannot be decoded", "no character of the label is in the dictionary",
            "label longer than max_text_length 25",
        )[turn % 8]  # fmt: skip
        records[at] = {
            "image truncated": (image[:-40], label, size),
            "image key is missing": (None, label, size),
            "label key is missing": (image, None, size),
            "label is not UTF-8": (image, b"\xff\xfe\xfa", size),
            "label is empty": (image, "", size),
            "image cannot be decoded": (b"junk" * 20, label, size),
            "no character of the label is in the dictionary": (image, "\u4e2d\u6587", size),
            "label longer than max_text_length 25": (image, "x" * 26, size),
        }[kind]
        reasons[at + 1] = kind
    return records, reasons


@pytest.mark.parametrize("with_wh", [True, False])
def test_broken_records_lose_nothing_else_in_training(tmp_path, with_wh):
    records, reasons = broken_records()
    path = write_lmdb(tmp_path / "db", records, with_wh)
    loader, batches = load(ratio_config([path], train_ops=AUG, first_bs=32), "Train")
    used = [name for b in batches for name in b.names]
    good = [f"{path}:image-{i:09d}" for i in range(1, len(records) + 1) if i not in reasons]
    assert sorted(used) == good
    named = {s.name: s.reason for b in batches for s in b.skipped}
    for reason, (count, examples) in loader.report.skipped.items():
        assert count == len(examples)
        named |= {e.split(": ")[0]: reason for e in examples}
    assert named == {f"{path}:image-{i:09d}": reason for i, reason in reasons.items()}
    assert loader.report.found == len(records)
    assert loader.report.found - loader.report.used == loader.report.n_skipped
    assert "\u4e2d" in loader.report.unknown and "label is empty" in str(loader.report)


@pytest.mark.parametrize("with_wh", [True, False])
def test_broken_records_are_all_scored_in_evaluation(tmp_path, with_wh):
    records, reasons = broken_records()
    path = write_lmdb(tmp_path / "db", records, with_wh)
    loader, batches = load(ratio_config([path], first_bs=32), "Eval")
    assert sorted(n for b in batches for n in b.names) == [f"{path}:image-{i:09d}" for i in range(1, len(records) + 1)]
    for batch in batches:
        assert not batch.skipped and len(batch.tensors[0]) == len(batch)
        for name, text, excluded, unreadable, length in zip(
            batch.names, batch.texts, batch.excluded, batch.unreadable, batch.tensors[2]
        ):
            number = int(name[-9:])
            reason = reasons.get(number)
            assert unreadable == (reason is not None and reason.startswith("image")), reason
            assert excluded == (reason if reason is not None and not unreadable else None)
            if reason is None:
                assert text == f"word{number}" and length == len(text)
    assert loader.report.n_excluded == sum(not r.startswith("image") for r in reasons.values())
    assert loader.report.used == len(records)


def test_long_labels_are_scored_not_replaced(tmp_path):
    records = words(25)
    records[:12] = [(image, "far too long a label for it " * 2, size) for image, _, size in records[:12]]  # T5
    path = write_lmdb(tmp_path / "db", records)
    _, batches = load(ratio_config([path]), "Eval")
    texts = [t for b in batches for t in b.texts]
    assert len(texts) == 25 and sum(t.startswith("far") for t in texts) == 12


def test_full_batches_of_a_bucket_are_kept(tmp_path):
    path = write_lmdb(tmp_path / "db", words(32, ratios=(4.0,)))  # T2
    for mode in ("Train", "Eval"):
        loader, batches = load(ratio_config([path]), mode)
        assert [len(b) for b in batches] == [8] * 4 and len(loader) == 4


def test_types_and_ranges(tmp_path):
    path = write_lmdb(tmp_path / "db", words(21))
    _, batches = load(ratio_config([path], train_ops=AUG), "Train")
    shapes = {tuple(b.tensors[0].shape[1:]) for b in batches}
    assert shapes == {(3, 64, 64), (3, 48, 96), (3, 40, 112), (3, 32, 128), (3, 32, 160), (3, 32, 224)}
    for batch in batches:
        image, label, length = batch.tensors
        assert image.dtype == torch.float32 and image.is_contiguous() and image.abs().max() <= 1
        assert label.dtype == length.dtype == torch.int64  # T43
        assert label.shape == (len(batch), 25) and batch.weight == 1


def same(first, second):
    assert [b.names for b in first] == [b.names for b in second]
    for a, b in zip(first, second):
        assert a.texts == b.texts and a.weight == b.weight and a.skipped == b.skipped
        assert all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_change_nothing(tmp_path, method):
    path = write_lmdb(tmp_path / "db", broken_records(120)[0])
    config = ratio_config([path], train_ops=AUG)
    _, alone = load(config, "Train", epoch=2)
    config["Train"]["loader"] |= {"num_workers": 2, "start_method": method}
    loader = build_loader(config, "Train", charset=CHARSET)
    loader.dataset[0]  # this process has the environment open when the workers start
    other = list(loader.epoch(1))
    same(alone, list(loader.epoch(2)))  # the second epoch of the same workers
    same(alone[3:], list(loader.epoch(2, 3)))
    loader.close()
    assert [b.names for b in other] != [b.names for b in alone]


def test_augmentation_differs_between_epochs_and_seeds(tmp_path):
    dataset = RatioDataSetTVResize([write_lmdb(tmp_path / "db", words(4))], transforms(*AUG), padding=False)
    images = [dataset[Pick(0, epoch)].values[0].tobytes() for epoch in range(1, 9)]
    assert len(set(images)) > 4
    assert dataset[Pick(0, 3)].values[0].tobytes() == images[2]


def test_train_and_eval_share_an_environment(tmp_path):
    path = write_lmdb(tmp_path / "db", words(10))  # T17: py-lmdb refuses to open a path twice
    train, evaluation = (build_loader(ratio_config([path]), m, charset=CHARSET) for m in ("Train", "Eval"))
    for a, b in zip(train.epoch(1), evaluation.epoch(1)):
        assert len(a) and len(b)
    link = tmp_path / "link"
    link.symlink_to(path)
    assert LmdbReader(link).num_samples() == 10


def test_data_sets_can_be_pickled(tmp_path):
    path = write_lmdb(tmp_path / "db", words(6))  # T42
    dataset = RatioDataSetTVResize([path], transforms(*AUG), charset=CHARSET)
    first = dataset[2]
    copied = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(copied[2].values[0], first.values[0])


def test_a_subset_is_drawn_anew_for_every_epoch(tmp_path):
    a, b = write_lmdb(tmp_path / "a", words(100)), write_lmdb(tmp_path / "b", words(60))
    config = ratio_config([a, b], ratio_list=[0.3, 1.0])
    loader = build_loader(config, "Train", charset=CHARSET, seed=3)
    assert loader.report.used == 90
    epochs = [[n for batch in loader.epoch(e) for n in batch.names] for e in range(1, 5)]
    assert all(len(names) == len(set(names)) == 90 for names in epochs)
    assert all(sum(n.startswith(b) for n in names) == 60 for names in epochs)
    assert len({frozenset(names) for names in epochs}) == 4  # T19
    assert epochs[1] == [n for batch in loader.epoch(2) for n in batch.names]
    assert len({len(list(loader.epoch(e))) for e in (1, 2, 3)} | {len(loader)}) == 1
    fixed = build_loader(config, "Eval", charset=CHARSET)
    first, second = ([n for b in fixed.epoch(e) for n in b.names] for e in (1, 2))
    assert first == second and len(first) == 90
    with pytest.raises(ConfigError, match="ratio_list"):
        build_loader(ratio_config([a, b], ratio_list=[0.3]) | {}, "Train", charset=CHARSET) and build_loader(
            ratio_config([a, b], ratio_list=[1, 1, 1]), "Train", charset=CHARSET
        )
    with pytest.raises(ConfigError, match="between 0 and 1"):
        build_loader(ratio_config([a], ratio_list=2), "Train", charset=CHARSET)


def test_rotation_is_not_refused(tmp_path, monkeypatch):
    from openrec.preprocess import parseq_aug

    monkeypatch.setattr(parseq_aug, "OPERATIONS", (parseq_aug.rotate,) * 16)  # T7
    path = write_lmdb(tmp_path / "db", words(20, ratios=(4.0, 6.0)))
    dataset = RatioDataSetTVResize([path], transforms(*AUG), padding=False)
    for epoch in range(1, 5):
        assert not any(isinstance(dataset[Pick(i, epoch)], Skipped) for i in range(20))


def test_images_too_narrow_for_min_ratio_are_named(tmp_path):
    path = write_lmdb(tmp_path / "db", words(10, ratios=(1.0, 6.0)))  # T49: recursion without end
    config = ratio_config([path])
    for mode in ("Train", "Eval"):
        config[mode]["loader"]["min_ratio"] = 4
    loader, batches = load(config, "Train")
    assert sum(len(b) for b in batches) == 5 and "too narrow for min_ratio 4" in str(loader.report)
    _, batches = load(config, "Eval")
    assert sum(len(b) for b in batches) == 10
    assert sum(e is not None for b in batches for e in b.excluded) == 5


def test_padding(tmp_path):
    path = write_lmdb(tmp_path / "db", words(8, ratios=(2.6,)))
    keep = {"keep": ("image", "valid_ratio", "real_ratio"), "label": None}
    for cls in (RatioDataSet, RatioDataSetTVResize):
        evaluation = cls([path], transforms(**keep), padding=True, mode="Eval")
        for pick in (Pick(3, 1), Pick(3, 2)):
            image, valid, real = evaluation[pick].values  # T44: right side, not random in evaluation
            width = round(valid * 112)
            assert image.shape == (3, 40, 112) and real == 3 and valid == pytest.approx(0.93, abs=0.05)
            assert (image[:, :, width:] == 0).all() and (image[:, :, :width] != 0).any()
        train = cls([path], transforms(**keep), padding=True)
        assert len({train[Pick(3, e)].values[1] for e in range(1, 9)}) > 3
        both = cls([path], transforms(**keep), padding=True, padding_doub=True)
        left = [(v[0][:, :, 0] == 0).all() for v in (both[Pick(3, e)].values for e in range(1, 40)) if v[1] < 0.99]
        assert 0 < sum(left) < len(left)
        either = cls([path], transforms(**keep), padding=False, padding_rand=True)
        assert {either[Pick(3, e)].values[1] == 1.0 for e in range(1, 20)} == {True, False}
        batch = [either[Pick(3, e)].values[0] for e in range(1, 20)]
        assert {(i.shape, i.dtype) for i in batch} == {((3, 40, 112), np.dtype(np.float32))}


# -- LMDBDataSet and the benchmark data sets ----------------------------------------------------------


def test_lmdb_dataset_walks_leaf_directories(tmp_path):
    for name, n in (("a", 3), ("b/c", 4)):
        write_lmdb(tmp_path / name, words(n))
    config = {
        "Train": {
            "dataset": {
                "name": "LMDBDataSet", "data_dir": str(tmp_path), "ratio_list": [1.0], "ext_op_transform_idx": 1,
                "transforms": transforms(RESIZE),
            },
            "loader": {"batch_size_per_card": 3, "shuffle": True, "drop_last": True, "num_workers": 0},
        }
    }  # fmt: skip
    loader, batches = load(config, "Train")
    assert [len(b) for b in batches] == [3, 3] and loader.report.found == 7
    assert batches[0].tensors[0].shape == (3, 3, 32, 128)
    orders = {tuple(n for b in loader_epoch(config, e) for n in b.names) for e in (1, 2, 3)}
    assert len(orders) == 3  # T34


def loader_epoch(config, epoch):
    return load(config, "Train", epoch)[1]


RULE = [
    # label, charset, excluded?
    ("hello", CHARSET, False),
    ("He llo", CHARSET, False),
    ("caf\u00e9", CHARSET, False),
    ("\u4e2d\u6587", CHARSET, True),
    ("...", CHARSET, True),
    ("x" * 26, CHARSET, True),
    (" ".join("x" * 25), CHARSET, False),  # 25 characters without the spaces
    ("\u4e2d\u6587", Charset(("\u4e2d", "\u6587", "a")), False),  # T63: not folded to ASCII
    ("\u5b57", Charset(("\u4e2d", "\u6587", "a")), True),
    ("abc", Charset(tuple("ABC")), False),
    ("abc", Charset(tuple("ABCd")), True),
]


@pytest.mark.parametrize("text, charset, excluded", RULE)
def test_openocr_rule(text, charset, excluded):
    assert (exclusion(text, charset, 25) is not None) == excluded


def test_clean_label():
    assert clean_label(" Caf\u00e9 7!", CHARSET, 25) == "cafe7"
    assert clean_label(" Caf\u00e9 7!", CHARSET, 25, filter_label=False) == "Caf\u00e97!"


@pytest.mark.parametrize("cls", [RatioDataSetTVResizeTest, RatioDataSetTest, LMDBDataSetTest])
def test_benchmark_sets_serve_everything_and_mark_openocrs_exclusions(tmp_path, cls):
    labels = ["Hello", "a b", "\u4e2d\u6587", "x" * 30, "ok!", " ".join("y" * 20)]
    records = [(encoded(100, 30), label, (100, 30)) for label in labels]
    path = write_lmdb(tmp_path / "db", records)
    lmdb_form = cls is LMDBDataSetTest
    data = cls(
        path if lmdb_form else [path], transforms(*([RESIZE] if lmdb_form else [])), charset=CHARSET,
        global_config={"max_text_length": 25},
    )  # fmt: skip
    samples = [data[i] for i in range(len(data))]
    assert [s.text for s in samples] == labels
    assert [s.excluded is not None for s in samples] == [False, False, True, True, False, False]
    assert data.report.used == 6 and data.report.n_excluded == 2
    assert samples[0].values[2] == 5 and samples[1].values[2] == 2


def test_benchmark_label_of_lmdb_form_is_the_cleaned_one(tmp_path):
    path = write_lmdb(tmp_path / "db", [(encoded(100, 30), " ".join("abcdefghijklmnop"), (100, 30))])
    ops = transforms(RESIZE, label={"CTCLabelEncode": {"max_text_length": 16, "use_space_char": True}})
    charset = Charset.load(None, True)
    for keep, length in ((True, 16), (False, 16)):
        data = LMDBDataSetTest(path, ops, keep, charset=charset, global_config={"max_text_length": 16})
        assert int(data[0].values[2]) == length and data[0].excluded is None
    ops = transforms(label=ops[-2])
    raw = RatioDataSetTVResizeTest([path], ops, charset=charset, global_config={"max_text_length": 16})
    assert raw[0].excluded == "label longer than max_text_length 16"  # T5: its label stays raw


# -- what cannot be used at all ------------------------------------------------------------------------


def test_missing_and_wrong_directories(tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    write_lmdb(tmp_path / "all" / "one", words(2))
    cases = {
        "data/trian": r"does not exist.*exists and holds: train",
        "data/train": r"has no data.mdb \(it holds: nothing\)",
        "file": "is a file, not an LMDB",
        "all": r"is not an LMDB, but these are: .*all/one",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=message):
            build_loader(ratio_config([tmp_path / name]), "Train", charset=CHARSET)
    with pytest.raises(DataError, match="does not exist"):
        LMDBDataSet(str(tmp_path / "nowhere"), transforms(RESIZE))
    (tmp_path / "data" / "train" / "data.mdb").write_bytes(b"junk" * 5000)
    with pytest.raises(DataError, match="cannot be opened as an LMDB"):
        build_loader(ratio_config([tmp_path / "data/train"]), "Train", charset=CHARSET)


def test_environments_without_a_count_or_a_sample(tmp_path):
    path = write_lmdb(tmp_path / "empty", [])
    for mode in ("Train", "Eval"):
        with pytest.raises(DataError, match="no usable sample"):
            build_loader(ratio_config([path]), mode, charset=CHARSET)
    import lmdb

    os.mkdir(tmp_path / "none")
    env = lmdb.open(str(tmp_path / "none"))
    with env.begin(write=True) as txn:
        txn.put(b"image-000000001", b"x")
    env.close()
    with pytest.raises(DataError, match=r"has no key num-samples \(first keys: image-000000001\)"):
        build_loader(ratio_config([tmp_path / "none"]), "Train", charset=CHARSET)


def test_no_usable_sample_names_the_reasons(tmp_path):
    path = write_lmdb(tmp_path / "db", [(encoded(60, 20), "\u4e2d", (60, 20))] * 5)
    with pytest.raises(DataError, match=r"5 x no character of the label is in the dictionary \(e.g. .*000000001"):
        build_loader(ratio_config([path]), "Train", charset=CHARSET)  # T18


def test_config_mistakes(tmp_path):
    path = write_lmdb(tmp_path / "db", words(4))
    base = ratio_config([path])

    def change(**keys):
        config = copy.deepcopy(base)
        for key, value in keys.items():
            section, name = key.split("__")
            config["Train"][section][name] = value
        return config

    mistakes = [
        (change(dataset__base_shape=[[64, 64]]), "base_shape"),
        (change(loader__max_ratio=0), "min_ratio"),
        (change(loader__collate_fn="SSLRotateCollate"), "collate_fn"),
        (change(dataset__transforms=[{"DecodeImagePIL": None}]), "KeepKeys"),
        (change(dataset__paddding=False), "padding"),
        (change(sampler__first_bss=3), "first_bs"),
        ({"Train": None}, "Train.dataset"),
    ]
    for config, message in mistakes:
        with pytest.raises(ConfigError, match=message):
            build_loader(config, "Train", charset=CHARSET)


def test_a_programming_error_is_seen(tmp_path, monkeypatch):
    path = write_lmdb(tmp_path / "db", words(4))
    dataset = RatioDataSetTVResize([path], transforms(label=CTC), charset=CHARSET)
    monkeypatch.setattr(dataset, "ops", [lambda sample: 1 / 0])  # T64: not turned into "another sample"
    with pytest.raises(ZeroDivisionError):
        dataset[0]
    with pytest.raises(IndexError):
        dataset[99]


def test_channel_orders_that_differ_are_reported(tmp_path, caplog):
    from openrec import registry

    registry._warned.clear()
    config = ratio_config([write_lmdb(tmp_path / "db", words(4))])
    config["Eval"]["dataset"]["transforms"][0] = {"DecodeImage": {"img_mode": "BGR"}}
    build_loader(config, "Eval", charset=CHARSET)
    assert "Train decodes images as RGB, Eval as BGR" in caplog.text  # T45
