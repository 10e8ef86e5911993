"""One percent of broken records: everything else is trained on and scored, and every broken one is named."""

import lmdb
from engine_case import config, write_words

from openrec.engine.evaluation import evaluate_config
from openrec.engine.trainer import Trainer

WORDS = 400
# number of the record -> what is wrong with it
BROKEN = {17: "truncated", 118: "no image key", 219: "not UTF-8", 320: "empty label"}


def break_records(folder):
    with lmdb.open(str(folder), map_size=1 << 24) as env, env.begin(write=True) as txn:
        for number, fault in BROKEN.items():
            image, label = b"image-%09d" % number, b"label-%09d" % number
            if fault == "truncated":
                txn.put(image, txn.get(image)[:60])
            elif fault == "no image key":
                txn.delete(image)
            else:
                txn.put(label, b"\xff\xfe" if fault == "not UTF-8" else b"")


def test_all_broken_records_are_named_and_nothing_else_is_lost(tmp_path):
    for name, seed in (("train", 0), ("eval", 1)):
        write_words(tmp_path / name, WORDS, seed)
        break_records(tmp_path / name)
    changes = {"Global.epoch_num": 1, "Train.loader.batch_size_per_card": 50, "Eval.loader.batch_size_per_card": 50}
    run = config(tmp_path, changes)
    trainer = Trainer(run)
    best = trainer.train()

    rows = [line.split("\t") for line in (tmp_path / "out" / "skipped.tsv").read_text().splitlines()]
    assert sorted(int(name.rsplit("-", 1)[1]) for _, _, name in rows) == sorted(BROKEN)
    assert trainer.loader.report.used + len([r for r in rows if r[0] == "0"]) == WORDS
    assert best["num_samples"] == WORDS
    log = (tmp_path / "out" / "train.log").read_text()
    assert all(f"train:image-{number:09d}" in log for number in BROKEN)
    assert all(f"eval:image-{number:09d}" in log for number in BROKEN)

    run["Global"]["pretrained_model"] = str(tmp_path / "out" / "best.pth")
    assert evaluate_config(run)["num_samples"] == WORDS
