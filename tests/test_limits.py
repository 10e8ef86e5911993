"""Short runs of a long training, and machines that lack something."""

from types import SimpleNamespace

import engine_case
import pytest
import torch

from openrec.checkpoint import read_checkpoint
from openrec.engine import limits
from openrec.engine.trainer import Trainer
from openrec.errors import ConfigError, OpenRecError


def run(folder, changes=()):
    trainer = Trainer(engine_case.config(folder, changes))
    return trainer, trainer.train()


def test_max_minutes_pauses_without_evaluation_and_continues_exactly(tmp_path, monkeypatch):
    answers = iter([False, False, True])
    monkeypatch.setattr(limits.TimeLimit, "over", lambda self: next(answers))
    run(tmp_path, {"Global.max_minutes": 5, "Global.save_latest_step": 0})
    monkeypatch.undo()
    state = read_checkpoint(tmp_path / "out" / "latest.pth")
    assert state["global_step"] == 3 and state["progress"]["batch"] == 3 and not state["progress"]["epoch_done"]
    assert not engine_case.rows(tmp_path / "out", "eval") and len(engine_case.rows(tmp_path / "out", "pause")) == 1
    run(tmp_path)
    run(tmp_path, {"Global.output_dir": str(tmp_path / "straight")})
    one, other = (read_checkpoint(tmp_path / d / "latest.pth")["state_dict"] for d in ("out", "straight"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_time_limit_counts_from_its_beginning():
    assert not limits.TimeLimit(None).over() and not limits.TimeLimit(5).over()
    assert limits.TimeLimit(1e-9).over()
    with pytest.raises(ConfigError, match="max_minutes"):
        limits.TimeLimit(0)


@pytest.mark.parametrize("name", ["memory_gb", "disk_gb"])
def test_a_machine_with_too_little_is_told_the_number_that_is_missing(tmp_path, name):
    with pytest.raises(OpenRecError, match=r"100000 GB are needed \(9\d{4}\.\d+ GB more\)"):
        run(tmp_path, {"Global.needs": {name: 100000}})
    assert not (tmp_path / "out" / "latest.pth").exists()


def test_too_few_fonts_are_told_with_packages():
    renderer = SimpleNamespace(fonts=SimpleNamespace(groups=[1, 2], packages=lambda: "fonts-nanum"))
    dataset = SimpleNamespace(renderer=renderer)
    with pytest.raises(OpenRecError, match=r"2 families .* 15 are needed \(13 more\): install fonts-nanum"):
        limits.check_fonts({"font_families": 15}, dataset)
    limits.check_fonts({"font_families": 2}, dataset)
    limits.check_fonts({"font_families": 15}, SimpleNamespace())  # words from files need no fonts


def test_an_unknown_need_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="memory_gb, disk_gb, font_families; got memory: 3"):
        limits.check_machine({"memory": 3}, tmp_path)


@pytest.mark.parametrize(("bf16", "amx"), [(True, False), (False, True), (False, False)])
def test_automatic_precision_of_a_cpu(monkeypatch, bf16, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    cpu = torch.device("cpu")
    assert [limits.use_bf16(wanted, cpu) for wanted in (True, False, "auto")] == [True, False, bf16 or amx]
