"""YAMLs written the way OpenOCR writes them run with nothing but data and dictionary paths given by ``-o``.

The fixtures in ``openocr_yaml/`` are flat, use anchors, and carry the keys that OpenOCR's configs set and
its code ignores.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

from openrec import registry
from openrec.config import check_config, load_config, resolve_charset
from openrec.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "openocr_yaml"
NAMES = sorted(p.stem for p in FIXTURES.glob("*.yml"))
WORDS = ["house", "Street", "No1", "a", "Exit-2", "internationalisation", "OPEN", "x9", "cafe", "Zoo!", "12:30", "taxi"]


def draw(word):
    """A PNG-encoded word, black on white."""
    image = np.full((32, 16 + 16 * len(word), 3), 255, np.uint8)
    cv2.putText(image, word, (6, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 2)
    return cv2.imencode(".png", image)[1].tobytes(), image.shape[1::-1]


def write_lmdb(path, words):
    with lmdb.open(str(path), map_size=1 << 24) as env, env.begin(write=True) as txn:
        for i, word in enumerate(words, 1):
            data, (w, h) = draw(word)
            txn.put(b"image-%09d" % i, data)
            txn.put(b"label-%09d" % i, word.encode())
            txn.put(b"wh-%09d" % i, b"%d_%d" % (w, h))
        txn.put(b"num-samples", str(len(words)).encode())
    return str(path)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Overrides that name data and dictionary, per fixture: nothing else."""
    folder = tmp_path_factory.mktemp("data")
    train, val = write_lmdb(folder / "train", WORDS * 2), write_lmdb(folder / "val", WORDS)
    for i, word in enumerate(WORDS):
        (folder / f"{i}.png").write_bytes(draw(word)[0])
    listing = folder / "list.txt"
    listing.write_text("".join(f"{i}.png\t{word}\n" for i, word in enumerate(WORDS)), encoding="utf-8")
    chinese = folder / "ppocr_keys_v1.txt"
    ascii_part = [chr(c) for c in range(33, 127)]
    chinese.write_text("\n".join(ascii_part + [chr(0x4E00 + i) for i in range(6623 - 94)]) + "\n", encoding="utf-8")
    flat = [f"{mode}.dataset.{key}" for mode in ("Train", "Eval") for key in ("data_dir", "label_file_list")]
    lines = [f"{flat[0]}={folder}", f"{flat[1]}=[{listing}]", f"{flat[2]}={folder}", f"{flat[3]}=[{listing}]"]
    records = [f"Train.dataset.data_dir_list=[{train}]", f"Eval.dataset.data_dir_list=[{val}]"]
    dictionary = f"Global.character_dict_path={chinese}"
    return {name: [*lines, dictionary] if name == "svtrv2_ch" else records for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_passes_the_check(name, mode, paths):
    config = load_config(FIXTURES / f"{name}.yml", paths[name])
    check_config(config, mode)
    assert len(resolve_charset(config)) == (6624 if name == "svtrv2_ch" else 94)


def test_ignored_keys_warn_once_each(paths, monkeypatch, caplog):
    monkeypatch.setattr(registry, "_warned", set())
    with caplog.at_level(logging.WARNING, "openrec"):
        for _ in range(2):
            check_config(load_config(FIXTURES / "svtrv2_tiny_rctc.yml", paths["svtrv2_tiny_rctc"]))
    messages = [r.getMessage() for r in caplog.records]
    for key in ("Global.save_res_path", "local_k", "sampler.fix_bs", "sampler.divided_factor",
                "Train.loader.batch_size_per_card", "Train.loader.drop_last", "Eval.loader.drop_last"):  # fmt: skip
        assert sum(key in m for m in messages) == 1, (key, messages)


def test_a_head_that_trains_no_encoder_is_named(paths, monkeypatch, caplog):
    monkeypatch.setattr(registry, "_warned", set())
    with caplog.at_level(logging.WARNING, "openrec"):
        check_config(load_config(FIXTURES / "svtrv2_ch.yml", paths["svtrv2_ch"]))
    assert sum("use_guide" in r.getMessage() for r in caplog.records) == 1


def test_overrides_reach_aliased_places(paths):
    words = ["Global.max_text_length=7", "Train.sampler.first_bs=4", "Train.loader.max_ratio=6"]
    config = load_config(FIXTURES / "svtrv2_smtr_gtc_rctc.yml", words)
    assert config["Architecture"]["Decoder"]["gtc_decoder"]["max_len"] == 7
    assert config["Train"]["loader"]["batch_size_per_card"] == config["Eval"]["sampler"]["first_bs"] == 4
    assert config["Eval"]["loader"]["max_ratio"] == 6
    config = load_config(FIXTURES / "svtrv2_ch.yml", paths["svtrv2_ch"])
    assert config["PostProcess"]["character_dict_path"] == config["Global"]["character_dict_path"]


BROKEN = [
    ("svtrv2_rctc", "Architecture.Encoder.dimz=[1]", 'SVTRv2LNConvTwo33 has no such key. Did you mean "dims"?'),
    ("svtrv2_rctc", "Architecture.Encoder.name=SVTRv2LNConvTwo3", 'Did you mean "SVTRv2LNConvTwo33"?'),
    ("svtrv2_rctc", "Architecture.Encoder.drop_path_rate='0.1'", "expected a number, got '0.1'"),
    ("svtrv2_rctc", "Train.dataset.transforms.3={KeepKey: null}", 'op is called "KeepKey". Did you mean "KeepKeys"?'),
    ("svtrv2_rctc", "Train.dataset.transforms=[PARSeqAugPIL]", "the last one must be KeepKeys"),
    ("svtrv2_rctc", "Train.dataset.transforms=", "expected a list of transforms"),
    ("svtrv2_rctc", "Train.dataset.data_dirlist=x", "data_dirlist: RatioDataSetTVResize has no such key"),
    ("svtrv2_rctc", "Train.sampler.first_bz=3", 'Did you mean "first_bs"?'),
    ("svtrv2_rctc", "LRScheduler.warmup_epochs=1", 'Did you mean "warmup_epoch"?'),
    ("svtrv2_rctc", "PostProcess.name=GTCLabelDecode", "PostProcess.gtc_label_decode: missing"),
    ("svtrv2_rctc", "Metric.name=RecGTCMetric", "RecGTCMetric scores the pair of results"),
    ("svtrv2_rctc", "Loss={name: GTCLoss, gtc_loss: {name: SMTRLoss}}", "GTCLoss does not go with RCTCDecoder; use"),
    ("svtrv2_rctc", "PostProcess.use_space_char=True", "one set of characters"),
    ("svtrv2_smtr_gtc_rctc", "Architecture.Decoder.infer_gtc=False", "use CTCLabelDecode for the CTC branch alone"),
    ("svtrv2_smtr_gtc_rctc", "Architecture.Decoder.gtc_decoder.name=SMTR", 'Did you mean "SMTRDecoder"?'),
    ("svtrv2_smtr_gtc_rctc", "Train.dataset.transforms.2.GTCLabelEncode.gtc_label_encode.sub_str_len=4", "reads 5"),
    ("svtrv2_smtr_gtc_rctc", "Loss.gtc_loss.name=SMTRLos", 'Loss.gtc_loss: no loss is called "SMTRLos"'),
    ("svtrv2_smtr_gtc_rctc", "Train.dataset.transforms.GTCLabelEncode.gtc_label_encode.name=X", "no op is called"),
    ("svtrv2_ch", "Architecture.Decoder.svtr_encoder.dimz=3", 'Did you mean "dims"?'),
    ("svtrv2_ch", "Train.loader.batch_size_per_card=", "needed where there is no sampler"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "word", "message"), BROKEN, ids=[w.split("=")[0] + f"-{n}" for n, w, _ in BROKEN])
def test_mistakes_are_named_before_any_data_is_read(name, word, message, paths):
    words = [w.replace("=[/", "=[/does-not-exist/") for w in paths[name]]
    with pytest.raises(ConfigError) as error:
        check_config(load_config(FIXTURES / f"{name}.yml", [*words, word]))
    assert message in str(error.value)


def run_tool(tool, arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tools" / tool), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_trains_one_epoch_and_evaluates(name, paths, tmp_path):
    # beside the paths: where to write, one epoch, and no GPU or worker processes on a test machine
    words = [*paths[name], f"Global.output_dir={tmp_path}", "Global.epoch_num=1", "Global.device=cpu"]
    words += ["Train.loader.num_workers=0", "Eval.loader.num_workers=0"]
    if name == "svtrv2_ch":  # one batch of so few images would be dropped
        words += ["Train.loader.batch_size_per_card=4"]
    config = str(FIXTURES / f"{name}.yml")
    run_tool("train_rec.py", ["--c", config, "--o", *words])
    for file in ("latest.pth", "config.yml", "train.log"):
        assert (tmp_path / file).exists(), file
    weights = tmp_path / "best.pth" if (tmp_path / "best.pth").exists() else tmp_path / "latest.pth"
    output = run_tool("eval_rec.py", ["--c", config, "--o", *words, f"Global.pretrained_model={weights}"])
    assert "acc" in output
