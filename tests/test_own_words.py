"""The one-page guide from a folder of pictures to a model, walked in both languages."""

import importlib.util
import subprocess
import sys

import cv2
import numpy as np
import pytest
import reading_case as case
from test_docs import commands

PAGES = {"own_words.md": ("Seoul", "Busan", "café"), "own_words.ko.md": ("서울", "부산", "대구역")}
SMALL = {  # a model of seconds
    "Architecture.Encoder.dims": "[16,32,64]",
    "Architecture.Encoder.depths": "[1,1,1]",
    "Architecture.Encoder.num_heads": "[1,2,4]",
    "Architecture.Encoder.mixer": "[[Conv],[Mamba],[Mamba]]",
}
SHORT = {  # and a run
    "Global.device": "cpu",
    "Global.max_steps": "2",
    "Train.loader.num_workers": "0",
    "Eval.loader.num_workers": "0",
    "Train.sampler.first_bs": "8",
    "Global.needs": "null",
}


def own_folder(root, words):
    crops = root / "own" / "crops"
    crops.mkdir(parents=True)
    for name, count in (("train", 24), ("val", 8)):
        lines = []
        for i in range(count):
            image = np.full((32, 96, 3), 230, np.uint8)
            cv2.putText(image, f"{name}{i}", (3, 22), 0, 0.6, (20, 20, 20), 2)
            file = f"crops/{name}{i:02d}.png"
            cv2.imwrite(str(root / "own" / file), image)
            lines.append(f"{file}\t{words[i % len(words)]}\n")
        (root / "own" / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")


def test_both_languages_give_the_same_commands():
    english, korean = ([words[:2] for words in commands(case.ROOT / "docs" / page)] for page in PAGES)
    assert english == korean and len(english) >= 11


def fonts_for(language):
    from openrec.data.render.renderer import WordRenderer
    from openrec.errors import ConfigError

    try:
        WordRenderer(None, language)
    except ConfigError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_walked(page, tmp_path):
    own_folder(tmp_path, PAGES[page])
    exports = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
    korean = fonts_for("ko")
    for words in commands(case.ROOT / "docs" / page):
        words = ["60" if w == "50000" else w for w in words]
        if "own.onnx" in words and not exports:
            continue
        if words[1].endswith("render_words.py") and not korean:
            words = [w for w in words if w not in ("--language", "ko", "--charset", "own/dictionary.txt")]
        if words[1].endswith("train_rec.py"):
            shipped = "Global.pretrained_model=weights/"
            words = [w.replace(shipped, f"Global.pretrained_model={case.ROOT}/weights/") for w in words]
            if not any("weights/tiny" in w for w in words):
                words = [w for w in words if not w.startswith("Global.pretrained_model")]
                words += [f"{k}={v}" for k, v in SMALL.items()]
            elif "_ko" in words[3] and not korean:
                continue
            words += [f"{k}={v}" for k, v in SHORT.items()]
        words = [str(case.ROOT / w) if w.startswith(("tools/", "configs/")) else w for w in words]
        done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "own" / "check" / "ratios.png").is_file()
    assert (tmp_path / "output" / "own" / "results.html").is_file()
