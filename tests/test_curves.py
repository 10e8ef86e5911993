"""Training curves from the log."""

import json
import subprocess
import sys

import engine_case
import pytest
from PIL import Image

from openrec.curves import plot_logs, read_log, smooth
from openrec.errors import ConfigError, DataError

pytest.importorskip("matplotlib")


def write(folder, rows=40, tail=""):
    folder.mkdir()
    events = [{"event": "start", "step": 0, "epoch": 1}]
    events += [{"event": "train", "step": 10 * i, "epoch": 1, "lr": i * 1e-4, "loss": 5 / (i + 1), "grad_norm": None,
                "ips": 100.0, "time": 1.0} for i in range(rows)]  # fmt: skip
    events += [{"event": "eval", "step": s, "epoch": 1, "acc": s / 400, "norm_edit_dis": 0.5} for s in (100, 200, 400)]
    (folder / "log.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events) + tail)
    return folder


def test_one_and_two_runs(tmp_path):
    a, b = write(tmp_path / "a"), write(tmp_path / "b", rows=3)
    for runs, name in (([a], "one.png"), ([a, b / "log.jsonl"], "two.png")):
        image = Image.open(plot_logs(runs, tmp_path / "out" / name))
        assert image.width > 1000 and len(image.convert("L").getcolors()) > 10


def test_what_is_read(tmp_path):
    log = read_log(write(tmp_path / "a", tail='{"event": "tra'))
    assert log.series("train", "loss")[1][0] == 5 and log.series("train", "grad_norm") == ([], [])
    assert log.keys("eval") == ["acc", "norm_edit_dis"] and log.name == "a"
    (tmp_path / "bad.jsonl").write_text("x\n{}\n")
    with pytest.raises(DataError, match="line 1"):
        read_log(tmp_path / "bad.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="no event"):
        read_log(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_log(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="smoothing"):
        plot_logs([tmp_path / "a"], tmp_path / "x.png", smoothing=1)
    with pytest.raises(ConfigError, match=r"expected a name that ends in \.png, \.svg"):
        plot_logs([tmp_path / "a"], tmp_path / "x.xyz")
    with pytest.raises(ConfigError, match=r'cannot write ".*empty\.jsonl/x\.png" .*Choose another --output'):
        plot_logs([tmp_path / "a"], tmp_path / "empty.jsonl" / "x.png")


def test_smoothing_starts_without_bias():
    assert smooth([3.0, 3.0, 3.0], 0.9) == pytest.approx([3.0] * 3) and smooth([1.0, 2.0], 0) == [1.0, 2.0]


def test_tool(tmp_path):
    run = write(tmp_path / "run")
    done = subprocess.run([sys.executable, engine_case.ROOT / "tools/plot_log.py", run], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == str(run / "curves.png") and (run / "curves.png").exists()
