"""A run that is killed and started again ends as one that was never interrupted, bit for bit."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import engine_case
import pytest
import torch

from openrec import checkpoint
from openrec.checkpoint import read_checkpoint
from openrec.engine import trainer as trainer_module
from openrec.engine.trainer import Trainer

# Dropout-like randomness on every step, accumulation with a leftover, workers' order: all of it has to continue.
CHANGES = {
    "Global.accumulation_steps": 2, "Global.save_latest_step": 1, "Global.use_ema": True,
    "Architecture.Encoder.drop_path_rate": 0.3, "Global.epoch_num": 3, "Global.eval_batch_step": [0, 4],
}  # fmt: skip


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_run(folder, changes, *, at_step=None, in_save=None):
    """Train in a child process that kills itself before step ``at_step`` or inside save number ``in_save``."""

    def child():
        torch.set_num_threads(1)
        real, replace, saves = trainer_module.TrainStep.__call__, os.replace, [0]

        def step(self, batches, number, first):
            if number == at_step:
                die()
            return real(self, batches, number, first)

        def rename(source, target):
            if str(target).endswith("latest.pth"):
                saves[0] += 1
                if saves[0] == in_save:
                    die()
            replace(source, target)

        trainer_module.TrainStep.__call__ = step
        checkpoint.os.replace = rename
        Trainer(engine_case.config(folder, changes)).train()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    return process.exitcode


def same_result(one, other):
    """All that two runs leave behind is equal, apart from times."""
    for name in ("latest.pth", "best.pth", "epoch_3.pth"):
        a, b = read_checkpoint(one / name), read_checkpoint(other / name)
        assert a["global_step"] == b["global_step"]
        assert all(torch.equal(a["state_dict"][k], b["state_dict"][k]) for k in a["state_dict"]), name
    a, b = read_checkpoint(one / "latest.pth"), read_checkpoint(other / "latest.pth")
    for index, state in a["optimizer"]["state"].items():
        assert all(torch.equal(v, b["optimizer"]["state"][index][k]) for k, v in state.items())
    assert all(torch.equal(v, b["ema"]["state_dict"][k]) for k, v in a["ema"]["state_dict"].items())
    assert torch.equal(a["rng"][0]["torch"], b["rng"][0]["torch"])
    for event, changing in (("train", ("ips", "time")), ("eval", ("fps",))):
        assert strip(one, event, changing) == strip(other, event, changing), event


def strip(folder, event, names):
    return [{k: v for k, v in row.items() if k not in names} for row in engine_case.rows(folder, event)]


def test_killed_twice_equals_uninterrupted(tmp_path):
    whole = {**CHANGES, "Global.output_dir": str(tmp_path / "whole")}
    Trainer(engine_case.config(tmp_path, whole)).train()
    assert killed_run(tmp_path, CHANGES, at_step=5) == -signal.SIGKILL
    assert read_checkpoint(tmp_path / "out/latest.pth")["global_step"] == 4
    assert killed_run(tmp_path, CHANGES, in_save=3) == -signal.SIGKILL
    assert [p for p in (tmp_path / "out").iterdir() if p.name.endswith(".tmp")]  # what the kill left
    Trainer(engine_case.config(tmp_path, CHANGES)).train()
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.endswith(".tmp")]
    same_result(tmp_path / "whole", tmp_path / "out")


def test_killed_behind_the_last_checkpoint_repeats_the_steps(tmp_path):
    changes = {**CHANGES, "Global.save_latest_step": 4}
    whole = {**changes, "Global.output_dir": str(tmp_path / "whole")}
    Trainer(engine_case.config(tmp_path, whole)).train()
    assert killed_run(tmp_path, changes, at_step=3) == -signal.SIGKILL  # before the first checkpoint
    assert not (tmp_path / "out/latest.pth").exists()
    assert killed_run(tmp_path, changes, at_step=8) == -signal.SIGKILL  # steps 5 to 7 are lost and repeated
    Trainer(engine_case.config(tmp_path, changes)).train()
    same_result(tmp_path / "whole", tmp_path / "out")


@pytest.mark.slow
def test_ten_kills_at_random_moments_of_the_tool(tmp_path):
    """The real command, SIGKILL from outside at any moment, with a loader process; ten times."""
    changes = {**CHANGES, "Train.loader.num_workers": 1}
    path = engine_case.config_file(tmp_path, changes, train=60)
    command = [sys.executable, str(engine_case.ROOT / "tools/train_rec.py"), "-c", str(path)]
    subprocess.run([*command, "-o", f"Global.output_dir={tmp_path / 'whole'}"], check=True, cwd=engine_case.ROOT)
    chance, kills = random.Random(1), 0
    log = tmp_path / "out/log.jsonl"
    while kills < 10:
        done = len(engine_case.rows(tmp_path / "out", "train")) if log.exists() else 0
        process = subprocess.Popen(command, cwd=engine_case.ROOT)
        wanted, deadline = done + chance.randint(1, 2), time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and log.read_text().count('"train"') >= wanted:
                break
            time.sleep(0.02)
        time.sleep(chance.random() * 0.05)
        if process.poll() is not None:
            break  # it was quicker than the kill
        process.kill()
        process.wait()
        kills += 1
    subprocess.run(command, check=True, cwd=engine_case.ROOT)
    assert kills >= 5
    same_result(tmp_path / "whole", tmp_path / "out")
