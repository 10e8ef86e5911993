"""Shipped models read their ten words; packing, loading and scoring work for a throw-away model."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from engine_case import rows, write_words
from reading_case import ROOT, run_tool

import openrec
from openrec.checkpoint import save_checkpoint
from openrec.config import load_config
from openrec.data.check import records_of
from openrec.errors import ConfigError, DataError, OpenRecError
from openrec.reading.loading import ModelCard
from openrec.shipping import overlap, pack, wordsets
from openrec.shipping.card import card
from openrec.shipping.score import evaluate, folded

SHIPPED = pack.models(ROOT / "weights")
SAMPLES = ROOT / "tests" / "data" / "shipped"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_model_reads_its_ten_words(file):
    words = wordsets.read_rows(SAMPLES / file.stem)
    assert len(words) == 10
    read = openrec.load(file, device="cpu")([str(SAMPLES / file.stem / name) for name, _ in words])
    assert [t.text for t in read] == [text for _, text in words]
    assert (file.with_suffix(".md")).exists() and (file.with_suffix(".json")).exists()


def test_shipped_files_stay_within_the_limits():
    if SHIPPED:
        pack.check_sizes([f.stat().st_size for f in SHIPPED])
    assert sum(f.stat().st_size for f in SAMPLES.rglob("*.jpg")) < 60_000


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A model with random weights, from a recipe's config, packed and loaded again."""
    folder = tmp_path_factory.mktemp("pack")
    config = load_config(ROOT / "configs/rec/svtrv2/svtrv2_mamba_tiny_en.yml")
    config["Architecture"]["Encoder"] |= {
        "dims": [16, 16, 32], "depths": [1, 1, 1], "num_heads": [1, 1, 2], "mixer": [["Conv"], ["Conv"], ["Mamba"]],
    }  # fmt: skip
    charset = openrec.charset.Charset.load(str(ROOT / "tools/utils/EN_symbol_dict.txt"))
    torch.manual_seed(0)
    model = ModelCard.from_checkpoint({"config": config, "charset": charset.state()}, "test").build()
    average = {k: v + 0.01 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    state = {"config": config, "charset": charset.state(), "state_dict": model.state_dict()}
    save_checkpoint({**state, "ema": {"updates": 1, "state_dict": average}}, folder / "latest.pth")
    file = pack.pack(folder / "latest.pth", "tiny-xx", folder / "weights", pictures=4)
    return folder, file, average


def test_a_packed_model_is_float16_of_the_average_and_complete(packed, monkeypatch):
    folder, file, average = packed
    from safetensors.torch import load_file

    stored = load_file(str(file))
    statistics = {k for k in stored if k.endswith(("running_mean", "running_var"))}  # buffers stay as they are
    assert {v.dtype for k, v in stored.items() if v.is_floating_point() and k not in statistics} == {torch.float16}
    assert all(torch.equal(stored[k], v.to(stored[k].dtype)) for k, v in average.items())
    assert statistics and all(stored[k].dtype == torch.float32 for k in statistics)
    monkeypatch.setenv("OPENREC_WEIGHTS", str(folder / "weights"))
    monkeypatch.chdir(folder)  # no dictionary in reach
    recognizer = openrec.load("tiny-xx", device="cpu")
    assert len(recognizer.charset) == 94 and recognizer.preprocess.shapes() == [(w, 32) for w in range(64, 257, 32)]
    texts = recognizer([np.full((20, 60, 3), 99, np.uint8)] * 2)
    assert texts[0].error is None and texts[0].text == texts[1].text


def test_sizes_and_names_are_refused_with_the_number(packed):
    with pytest.raises(OpenRecError, match=r"17\.00 MB, 1\.00 MB more than the 16 MB"):
        pack.check_sizes([17_000_000])
    with pytest.raises(OpenRecError, match=r"4\.00 MB more than the 32 MB"):
        pack.check_sizes([12_000_000] * 3)
    with pytest.raises(ConfigError, match="plain name"):
        pack.pack(packed[0] / "latest.pth", "../x", packed[0])
    with pytest.raises(OpenRecError, match="not ready to ship"):  # random weights read nothing
        pack.write_samples(openrec.load(packed[1], device="cpu"), packed[0] / "none", ["DejaVu Sans"], tries=2)


def picture(text, size=0.8):
    image = np.full((40, 140, 3), 210, np.uint8)
    cv2.putText(image, text, (4, 29), 0, size, (30, 10, 90), 2)
    return image


def label_folder(folder, texts, suffix=".png", scale=1.0):
    """Pictures with ``labels.tsv``."""
    folder.mkdir(parents=True)
    for number, text in enumerate(texts):
        image = cv2.resize(picture(text), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / f"{number}{suffix}"), image)
    lines = [f"{number}{suffix}\t{text}\textra column\n" for number, text in enumerate(texts)]
    (folder / "labels.tsv").write_text("".join(lines), encoding="utf-8")
    return folder


TEXTS = ["STOP", "cafe", "Hotel 7", "EXIT", "Taxi", "12:30", "Bakery", "open", "SALE", "Museum", "wine", "A1"]


def test_training_words_hold_no_picture_of_a_test(tmp_path):
    words = label_folder(tmp_path / "words", [*TEXTS, "wine"])  # the 13th shows what the 11th does
    tests = label_folder(tmp_path / "tests", ["STOP", "SALE"], ".jpg", 0.8)  # other size and compression
    done = run_tool("prepare_real.py", "--words", words, "--tests", tests, "--output", tmp_path / "real")
    assert done.returncode == 0 and "10 words for training; left out: 1 held-out rows, 2 pictures" in done.stdout
    kept = [r.label for r in records_of(tmp_path / "real")]
    assert "Museum" not in kept and "STOP" not in kept and "SALE" not in kept and kept.count("wine") == 2


def test_a_test_picture_in_training_is_found_and_refused(tmp_path, packed):
    words = label_folder(tmp_path / "words", TEXTS)
    tests = label_folder(tmp_path / "tests", ["EXIT", "new"], ".jpg", 0.7)
    done = run_tool("eval_weights.py", "--model", packed[1], "--words", tests, "--training", words / "labels.tsv")
    assert done.returncode == 1 and "1 pictures of the test sets are in the training data" in done.stderr
    assert "tests: 0.jpg is 3.png" in done.stderr
    with pytest.raises(DataError, match="holds no image"):
        overlap.fingerprints([str(write_words(tmp_path / "empty", 0))])


def test_every_word_is_scored_by_script(tmp_path, packed):
    folder = label_folder(tmp_path / "mixed", ["one", "서울", "!", "42", "清潔な"])
    words = wordsets.all_words(folder)

    class Reader:
        charset = openrec.load(packed[1], device="cpu").charset

        def __call__(self, images, batch_size):
            return [openrec.recognizer.Text(t) for t in ("ONE!", "", "", "42", "清")]

    result = evaluate(Reader(), [words])
    found = {r["script"]: (r["words"], r["correct"], r["exact"], r["unknown"]) for r in result["sets"][0]["rows"]}
    assert found == {
        "all": (5, 2, 1, 2), "Latin": (1, 1, 0, 0), "Hangul": (1, 0, 0, 1), "marks": (1, 0, 0, 0),
        "digits": (1, 1, 1, 0), "Japanese": (1, 0, 0, 1),
    }  # fmt: skip
    assert folded("Café-7") == "café7" and folded("!?") == "!?"


def test_a_card_is_made_of_measured_numbers(tmp_path, packed):
    words = label_folder(tmp_path / "words", TEXTS)
    target = tmp_path / "tiny-xx.json"
    known = {"name": "tiny-xx", "model": pack.facts_of(packed[1])}
    pack.write_facts(target, known)
    with pytest.raises(DataError, match="lack evaluation"):
        card(known)
    done = run_tool(
        "eval_weights.py", "--model", packed[1], "--words", words, "--rendered", 4, "--training", "rendered",
        "--threads", 1, "--output", target,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run_tool("pack_weights.py", "--name", "tiny-xx", "--card", "--folder", tmp_path)
    text = (tmp_path / "tiny-xx.md").read_text()
    assert (
        done.returncode == 0 and "| all | 12 | 0 | 0.0 % |" in text and "10 digits, 52 Latin letters, 32 marks" in text
    )
    assert "What more training" not in text
    assert "\nTwice as much.\n" in card(json.loads(target.read_text()) | {"training": {"outlook": "Twice as much."}})
    assert "| [tiny-xx](tiny-xx.md) |" in (tmp_path / "README.md").read_text()
    facts = json.loads(target.read_text())
    facts["training"] = {"stages": [{"real": True, "data": {}}]}
    with pytest.raises(DataError, match="not compared with the test sets"):
        card(facts)


def test_facts_of_a_run_come_from_its_own_files(tmp_path):
    import engine_case

    from openrec.engine.trainer import Trainer
    from openrec.shipping.facts import described, stage

    Trainer(engine_case.config(tmp_path)).train()
    found = stage(tmp_path / "out", "python tools/train_rec.py")
    last = rows(tmp_path / "out", "train")[-1]
    assert found["steps"] == last["step"] and found["calls"] == 1 and len(found["curve"]) == 2 and not found["real"]
    assert f"{last['step']} steps of 4" in described(found)
    with pytest.raises(DataError, match="output_dir of a run"):
        stage(Path(tmp_path) / "nothing")


def test_a_kept_state_is_half_as_large_and_continues(tmp_path):
    import engine_case

    from openrec.checkpoint import read_checkpoint
    from openrec.engine.trainer import Trainer

    changes = {"Global.use_ema": True, "Global.epoch_num": 2, "Optimizer.name": "AdamW"}
    Trainer(engine_case.config(tmp_path, {**changes, "Global.max_steps": 3})).train()
    state, kept = tmp_path / "out" / "latest.pth", tmp_path / "kept.pth"
    pack.keep_state(state, kept)
    before, after = read_checkpoint(state), read_checkpoint(kept)
    assert all(torch.equal(v, after["state_dict"][k]) for k, v in before["state_dict"].items())
    assert kept.stat().st_size < 0.75 * state.stat().st_size
    more = {**changes, "Global.checkpoints": str(kept), "Global.output_dir": str(tmp_path / "more")}
    Trainer(engine_case.config(tmp_path, more)).train()
    steps = [r["step"] for r in rows(tmp_path / "more", "train")]
    assert steps[-1] > 3 and read_checkpoint(tmp_path / "more" / "latest.pth")["global_step"] == steps[-1]
    moments = next(iter(read_checkpoint(tmp_path / "more" / "latest.pth")["optimizer"]["state"].values()))
    assert moments["exp_avg"].dtype == torch.float32
