"""``SyntheticWords`` behind the loader: fixed sizes, ratio buckets, epochs, held-out words."""

import numpy as np
import pytest
from lmdb_helper import words, write_lmdb

from openrec.charset import Charset
from openrec.data import build_loader
from openrec.errors import ConfigError

FIXED = [
    {"DecodeImagePIL": {"img_mode": "RGB"}},
    {"PARSeqAugPIL": None},
    {"RecTVResize": {"image_shape": [32, 96]}},
    {"CTCLabelEncode": None},
    {"KeepKeys": {"keep_keys": ["image", "label", "length"]}},
]
BUCKETS = [FIXED[0], *FIXED[3:]]
RATIOS = (0.6, 1.2, 2.0, 3.1, 4.0, 5.2, 7.4)  # of lmdb_helper.words


def config(transforms=FIXED, sampler=None, workers=0, **dataset):
    def section(shuffle):
        loader = {"batch_size_per_card": 8, "num_workers": workers, "shuffle": shuffle, "max_ratio": 6}
        words = {"name": "SyntheticWords", "size": 40, "transforms": transforms, **dataset}
        return {"dataset": words, "loader": loader, **({"sampler": sampler} if sampler else {})}

    return {"Global": {"max_text_length": 8}, "Train": section(True), "Eval": section(False)}


def batches(cfg, mode="Train", epoch=1, **options):
    loader = build_loader(cfg, mode, charset=Charset.load(), **options)
    found = list(loader.epoch(epoch))
    loader.close()
    return found


def texts(found):
    return [text for batch in found for text in batch.texts]


def test_one_size_without_a_sampler():
    found = batches(config())
    assert sum(len(b) for b in found) == 40 and not any(b.skipped for b in found)
    assert {tuple(b.tensors[0].shape[1:]) for b in found} == {(3, 32, 96)}
    assert all(1 <= len(t) <= 8 for t in texts(found))


def test_training_sees_new_words_every_epoch_and_evaluation_never():
    cfg = config()
    first, second, again = (texts(batches(cfg, epoch=e)) for e in (1, 2, 1))
    assert first == again and len(set(first) & set(second)) < 20
    assert texts(batches(cfg, "Eval", 1)) == texts(batches(cfg, "Eval", 5))


def test_evaluated_words_are_never_trained_on():
    trained = {t.lower() for t in texts(batches(config(size=200)))}
    evaluated = {t.lower() for t in texts(batches(config(size=200), "Eval"))}
    assert not trained & evaluated


def test_seed_of_the_run_and_of_the_data_set():
    assert texts(batches(config(), seed=1)) != texts(batches(config(), seed=2))
    assert set(texts(batches(config(seed=7), seed=1))) == set(texts(batches(config(seed=7), seed=2)))


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_change_nothing(method, workers):
    cfg = config(words="model", size=16)
    alone = batches(cfg)
    cfg["Train"]["loader"] |= {"num_workers": workers, "start_method": method}
    many = batches(cfg)
    assert texts(alone) == texts(many)
    assert all((a.tensors[0] == b.tensors[0]).all() for a, b in zip(alone, many, strict=True))


@pytest.mark.parametrize("sampler", [None, {"name": "RatioSampler", "scales": [[128, 32]], "first_bs": 8}])
def test_ratio_buckets(sampler):
    cfg = config(BUCKETS, sampler, by_ratio=True, size=60)
    found = batches(cfg)
    shapes = {tuple(b.tensors[0].shape[2:]) for b in found}
    assert shapes <= {(64, 64), (48, 96), (40, 112), (32, 128), (32, 160), (32, 192)} and len(shapes) >= 3
    assert sorted(n for b in found for n in b.names) == sorted(f"rendered/train:{i}" for i in range(60))
    assert [len(b) for b in batches(cfg, epoch=2)] != []


def test_boxes_and_report():
    loader = build_loader(config(), "Train", charset=Charset.load())
    word = loader.dataset.render(3, np.random.default_rng(0))
    assert word.boxes.shape == (len(word.text), 4)
    assert "font faces" in str(loader.report) and loader.report.used == 40


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ({"size": 0}, "size"),
        ({"split": "dev"}, "split"),
        ({"max_length": 9}, "max_text_length"),
        ({"language": "ko"}, "Hangul|font"),
        ({"by_ratio": True, "min_ratio": 9}, "min_ratio"),
        ({"sise": 3}, "size"),
    ],
)
def test_wrong_settings_say_what_is_wrong(dataset, message):
    with pytest.raises(ConfigError, match=message):
        build_loader(config(**dataset), "Train", charset=Charset.load())


def test_photographed_words_are_mixed_into_training(tmp_path):
    folder = write_lmdb(tmp_path / "real", words(20))
    mixed = config(real=folder, real_share=0.5)
    del mixed["Eval"]["dataset"]["real"], mixed["Eval"]["dataset"]["real_share"]
    first, again, second = batches(mixed), batches(mixed), batches(mixed, epoch=2)
    photographed = [t for t in texts(first) if t.startswith("word")]
    assert 8 <= len(photographed) <= 32 and len(set(photographed)) > 5
    assert texts(first) == texts(again) and texts(first) != texts(second)
    assert not [t for t in texts(batches(mixed, "Eval")) if t.startswith("word")]


def test_photographed_words_keep_their_shape_in_ratio_buckets(tmp_path):
    folder = write_lmdb(tmp_path / "real", words(40))
    sampler = {"name": "RatioSampler", "scales": [[128, 32]], "first_bs": 8}
    mixed = config(BUCKETS, sampler, by_ratio=True, real=folder, real_share=0.9)
    for batch in batches(mixed):
        ratio = batch.tensors[0].shape[3] / batch.tensors[0].shape[2]
        for text in batch.texts:
            if text.startswith("word"):
                number = int(text.removeprefix("word")) - 1
                assert abs(RATIOS[number % len(RATIOS)] - ratio) <= 1.0


def test_broken_photographs_are_named(tmp_path):
    folder = write_lmdb(tmp_path / "real", [(b"no picture", "word1", (64, 32)), *words(1)])
    mixed = config(real=folder, real_share=0.9)
    found = [skipped for batch in batches(mixed) for skipped in batch.skipped]
    assert found and all("image-000000001" in skipped.reason for skipped in found)


def test_photographed_words_are_refused_in_evaluation(tmp_path):
    with pytest.raises(ConfigError, match="evaluate them on their own"):
        build_loader(config(real=write_lmdb(tmp_path / "real", words(3))), "Eval", charset=Charset.load())
