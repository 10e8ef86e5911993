"""A comparison: equal conditions, a budget that holds, finished systems left alone, stopped ones continued."""

import contextlib
import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import engine_case
import pytest
import torch
from torch import nn

from openrec.compare.budget import Budget, BudgetTrainer, planned_steps
from openrec.compare.flops import count_flops
from openrec.compare.lock import Busy, locked
from openrec.compare.pictures import minutes_at
from openrec.compare.run import LeftOut, compare, finished, measure_all_again, names_of, write_table
from openrec.compare.systems import Conditions, run_system
from openrec.curves import read_log
from openrec.errors import ConfigError, DataError, OpenRecError
from openrec.modeling.layers import Mlp
from openrec.ops import available, dcnv3, deform_sample, selective_scan

OTHER = {"Architecture.Encoder.dims": [8, 16, 32]}


@pytest.fixture()
def configs(tmp_path):
    """Two systems on the same data; ``labels.tsv`` with real words beside them."""
    paths = []
    for name, changes in (("first", {}), ("second", OTHER)):
        path = engine_case.config_file(tmp_path, changes)
        paths.append(str(path.rename(tmp_path / f"{name}.yml")))
    return paths


def rows(folder, event):
    return engine_case.rows(folder / "run", event)


def test_table_csv_pictures_and_no_second_training(configs, tmp_path, monkeypatch):
    conditions = Conditions(Budget(steps=4), seed=3)
    results = compare(configs, tmp_path / "out", conditions, separate=False, command="what was typed")
    assert [r.name for r in results] == ["first", "second"] and all(r.steps == 4 for r in results)
    assert results[0].parameters < results[1].parameters and results[0].flops < results[1].flops
    for result in results:
        assert result.samples == 9 and 0 <= result.acc <= 1 and 0 <= result.norm_edit_dis <= 1
        assert min(result.train_ips, result.infer_ips, result.latency_ms, result.work_minutes) > 0
        assert rows(tmp_path / "out" / result.name, "end")[-1]["step"] == 4
        assert len({r["lr"] for r in rows(tmp_path / "out" / result.name, "train")}) == 4  # a schedule of 4 steps
    text = (tmp_path / "out" / "table.md").read_text()
    assert "first" in text and "second" in text and "4 steps" in text and "what was typed" in text
    assert "not train on the same data" not in text and "real words" not in text
    table = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [row["name"] for row in table] == ["first", "second"] and float(table[0]["train_ips"]) > 0
    pytest.importorskip("matplotlib")
    assert {p.name for p in (tmp_path / "out").glob("*.png")} == {"curves.png", "accuracy.png", "accuracy_and_cost.png"}

    monkeypatch.setattr(BudgetTrainer, "train", lambda self: pytest.fail("trained again"))
    again = compare(configs, tmp_path / "out", conditions, separate=False)
    assert again == results


def test_speeds_are_measured_again(configs, tmp_path, monkeypatch):
    """Of all finished systems, without training; what was learned stays."""
    out = tmp_path / "out"
    before = compare(configs, out, Conditions(Budget(steps=2), seed=3, threads=1), separate=False)
    for name in ("first", "second"):
        file = out / name / "result.json"
        busy = {"train_ips": -1.0, "infer_ips": -1.0, "latency_ms": -1.0, "peak_memory_mib": -1.0}
        file.write_text(json.dumps(json.loads(file.read_text()) | busy))
    monkeypatch.setattr(BudgetTrainer, "train", lambda self: pytest.fail("trained again"))
    measure_all_again(out, separate=False)
    again = finished(out)
    speeds = ("train_ips", "infer_ips", "latency_ms")
    assert all(getattr(r, key) > 0 for r in again for key in speeds)
    fresh = dict.fromkeys((*speeds, "peak_memory_mib"), 0.0)
    assert [replace(r, **fresh) for r in again] == [replace(r, **fresh) for r in before]
    assert f"{again[0].train_ips:.0f}" in (out / "table.md").read_text()

    changed = Path(configs[0])
    changed.write_text(changed.read_text().replace("lr: ", "lr: 1"))
    (out / "second" / "result.json").write_text(json.dumps(asdict(again[1]) | {"train_ips": -1.0}))
    with pytest.raises(LeftOut, match=r"first: not measured again"):
        measure_all_again(out, separate=False)
    assert finished(out)[0] == again[0] and finished(out)[1].train_ips > 0
    assert f"{finished(out)[1].train_ips:.0f}" in (out / "table.md").read_text()


def test_a_stopped_system_continues(configs, tmp_path, monkeypatch):
    conditions = Conditions(Budget(steps=5))
    whole = run_system(configs[0], "first", tmp_path / "whole", conditions)
    step = BudgetTrainer._step

    def stop(self, *arguments):
        step(self, *arguments)
        if self.parts.progress.step == 3:
            self.stop_signal = 15
            self._stop_when_asked()

    monkeypatch.setattr(BudgetTrainer, "_step", stop)
    with pytest.raises(SystemExit):
        run_system(configs[0], "first", tmp_path / "cut", conditions)
    monkeypatch.undo()
    seconds = json.loads((tmp_path / "cut" / "run" / "work.json").read_text())["seconds"]
    result = run_system(configs[0], "first", tmp_path / "cut", conditions)
    assert 60 * result.work_minutes > seconds > 0
    losses = [[(r["step"], r["loss"]) for r in rows(tmp_path / n, "train")] for n in ("whole", "cut")]
    assert losses[0] == losses[1] and result.acc == whole.acc


def test_other_conditions_in_the_same_place_are_refused(configs, tmp_path):
    run_system(configs[0], "first", tmp_path / "f", Conditions(Budget(steps=1)))
    for other in (Conditions(Budget(steps=2)), Conditions(Budget(steps=1), seed=1)):
        with pytest.raises(ConfigError, match="other conditions"):
            run_system(configs[0], "first", tmp_path / "f", other)
    with pytest.raises(ConfigError, match="other conditions"):
        run_system(configs[1], "first", tmp_path / "f", Conditions(Budget(steps=1)))


def test_minutes_become_steps_by_cpu_time(configs, tmp_path, monkeypatch):
    """A fast clock: every look at it is a second later; a step takes as many looks in the run as in the pilot."""
    seconds = iter(range(10**6))
    monkeypatch.setattr("openrec.compare.budget.time.process_time", lambda: next(seconds))
    conditions = Conditions(Budget(minutes=0.2))
    (tmp_path / "f").mkdir()
    config = conditions.of(configs[0], tmp_path / "f")
    steps = planned_steps(config, conditions.budget, tmp_path / "f")
    assert 5 <= steps <= 12 and not (tmp_path / "f" / "pilot").exists()
    assert planned_steps(config, conditions.budget, tmp_path / "f") == steps  # planned once
    assert config["Train"]["loader"]["num_workers"] == 0


@pytest.mark.parametrize("planned", [4, 40])
def test_minutes_are_equal_however_wrong_the_plan_was(tmp_path, monkeypatch, planned):
    """The run ends with the minutes, and so does its schedule."""
    seconds = iter(range(10**6))  # a fast clock: every look at it is a second later
    monkeypatch.setattr("openrec.compare.budget.time.process_time", lambda: next(seconds))
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "plan.json").write_text(json.dumps({"steps": planned}))
    path = engine_case.config_file(tmp_path, {"LRScheduler": {"name": "LinearLR"}, "Global.print_batch_step": 1})
    result = run_system(str(path), "f", tmp_path / "f", Conditions(Budget(minutes=1.0)))
    assert 1 <= result.work_minutes < 1.2 and 8 <= result.steps <= 30
    rates = [row["lr"] for row in rows(tmp_path / "f", "train")]
    assert len(rates) == result.steps and rates == sorted(rates, reverse=True)
    assert rates[-1] <= rates[0] * max(0.3, 1 / planned)


def test_evaluation_costs_no_budget(configs, tmp_path, monkeypatch):
    conditions = Conditions(Budget(steps=3))
    config = conditions.of(configs[0], tmp_path / "f")
    config["Global"]["max_steps"] = 3
    trainer = BudgetTrainer(config)
    evaluate = trainer.evaluator.evaluate

    def slow(model):
        assert not trainer.work.running
        return evaluate(model)

    monkeypatch.setattr(trainer.evaluator, "evaluate", slow)
    trainer.train()
    assert trainer.work.seconds > 0 and not trainer.work.running


@pytest.mark.parametrize("arguments", [{}, {"steps": 1, "minutes": 1.0}, {"steps": 0}, {"minutes": -1.0}])
def test_a_budget_is_one_positive_number(arguments):
    with pytest.raises(ConfigError, match="budget"):
        Budget(**arguments)


def test_real_words(configs, tmp_path):
    source = engine_case.write_words(tmp_path / "real", 4, seed=9)
    result = run_system(configs[0], "first", tmp_path / "f", Conditions(Budget(steps=1), real=(str(source),)))
    assert result.real_samples == 4 and result.samples == 9 and list(result.real_sets) == ["real"]


def test_other_real_words_are_scored_without_training_again(configs, tmp_path, monkeypatch):
    run_system(configs[0], "first", tmp_path / "f", Conditions(Budget(steps=1)))
    monkeypatch.setattr(BudgetTrainer, "train", lambda self: pytest.fail("trained again"))
    source = engine_case.write_words(tmp_path / "more", 3, seed=9)
    for real, number in (((str(source),), 3), ((), 0)):
        result = run_system(configs[0], "first", tmp_path / "f", Conditions(Budget(steps=1), real=real))
        assert (result.real_samples, result.samples, result.steps) == (number, 9, 1)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (("SVTRv2LNConvTwo33", "NoSuchEncoder"), {}, "NoSuchEncoder"),
        (("Eval", "Eval"), {"real": ("none",)}, "neither an LMDB nor"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_training(
    configs, tmp_path, monkeypatch, change, options, message
):
    monkeypatch.setattr(BudgetTrainer, "train", lambda self: pytest.fail("trained"))
    second = tmp_path / "other.yml"
    second.write_text((tmp_path / "second.yml").read_text().replace(*change))
    with pytest.raises(ConfigError, match=message):
        compare([configs[0], str(second)], tmp_path / "out", Conditions(Budget(steps=1), **options), separate=False)


@pytest.mark.parametrize("options", [{"threads": 0}, {"overrides": ("Global.max_steps=9",)}])
def test_conditions_that_contradict_the_comparison(options):
    with pytest.raises(ConfigError, match=r"--threads|--steps or --minutes"):
        Conditions(Budget(steps=1), **options)


def test_a_system_that_fails_is_left_out(configs, tmp_path, monkeypatch):
    train = BudgetTrainer.train

    def failing(self):
        if "second" in str(self.output):
            raise DataError("its words are gone")
        return train(self)

    monkeypatch.setattr(BudgetTrainer, "train", failing)
    with pytest.raises(LeftOut, match="second: left out"):
        compare(configs[::-1], tmp_path / "out", Conditions(Budget(steps=1)), separate=False)
    assert [r.name for r in finished(tmp_path / "out")] == ["first"] and (tmp_path / "out" / "table.md").exists()


def test_two_processes_share_the_systems(configs, tmp_path):
    out, conditions = tmp_path / "out", Conditions(Budget(steps=1))
    with locked(out / "first"):  # another process works on the first
        with pytest.raises(Busy):
            run_system(configs[0], "first", out / "first", conditions)
        assert [r.name for r in compare(configs, out, conditions, separate=False)] == ["second"]
    assert "first" not in (out / "table.md").read_text()
    run_system(configs[0], "first", out / "first", conditions)  # and leaves no table behind
    write_table(out)
    assert "| first |" in (out / "table.md").read_text() and "| second |" in (out / "table.md").read_text()
    with pytest.raises(ConfigError, match="seed 48, now 3"):
        compare(configs, out, Conditions(Budget(steps=1), seed=3), separate=False)
    with pytest.raises(DataError, match="no finished system"):
        write_table(tmp_path / "empty")


def test_who_comes_second_leaves_the_system_to_the_first(configs, tmp_path, monkeypatch):
    """Also where both found it free and one process lost the race for the lock."""
    first = []

    def lost(*arguments):
        first.append(stack.enter_context(locked(tmp_path / "out" / "first")))
        raise OpenRecError("its process ended with status 1")

    monkeypatch.setattr("openrec.compare.run._alone", lost)
    with contextlib.ExitStack() as stack:
        assert compare(configs[:1], tmp_path / "out", Conditions(Budget(steps=1))) == []
    assert len(first) == 1


def test_the_log_tells_minutes(configs, tmp_path):
    run_system(configs[0], "first", tmp_path / "f", Conditions(Budget(steps=4)))
    log = read_log(tmp_path / "f" / "run")
    minutes = minutes_at(log, [0, 1, 2, 3, 4])
    assert minutes[0] == 0 and minutes == sorted(minutes) and minutes[4] > minutes[1] > 0


def test_names():
    assert names_of(["a/x.yml", "b/y.yml"]) == ["x", "y"]
    assert names_of(["a/x.yml", "b/x.yml"]) == ["a_x", "b_x"]
    with pytest.raises(ConfigError, match="twice"):
        names_of(["a/x.yml", "a/x.yml"])


class _Only(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, x):
        return self.run(x)


def native_only():
    if available()["native cpu"] != "ok":
        pytest.skip("counted where the compiled operators run")


def test_flops_of_what_torch_knows():
    assert count_flops(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(1, 3, 4, 6)) == 2 * 8 * 3 * 9 * 24
    assert count_flops(nn.Linear(6, 5), torch.zeros(1, 3, 4, 6)) == 2 * 12 * 6 * 5
    attention = _Only(lambda x: nn.functional.scaled_dot_product_attention(x, x, x))
    assert count_flops(attention, torch.zeros(1, 2, 7, 16)) == 2 * 2 * 2 * 7 * 7 * 16


def test_flops_of_the_projects_linear_layers():
    """They take a route of their own on some processors."""
    x = torch.zeros(1, 300, 64)
    assert count_flops(Mlp(64, 96), x) == 2 * 2 * 300 * 64 * 96


def test_flops_leave_a_model_that_returns_parameters_as_it_was():
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.zeros(3, 5))

        def forward(self, x):
            return self.table

    model = nn.Sequential(Returns(), nn.Linear(5, 2))
    assert count_flops(model, torch.zeros(1, 3)) == 2 * 3 * 5 * 2
    assert all(p.requires_grad for p in model.parameters()) and model.training


def test_flops_of_own_operators():
    native_only()
    b, d, n, length = 1, 4, 2, 6
    u, bc = torch.zeros(b, d, length), torch.zeros(b, n, length)
    scan = _Only(lambda x: selective_scan(u, u, -torch.ones(d, n), bc, bc, torch.ones(d)))
    assert count_flops(scan, u) == b * d * length * (8 * n + 2)
    value, offset = torch.zeros(1, 3, 5, 8), torch.zeros(1, 3, 5, 4)
    assert count_flops(_Only(lambda x: dcnv3(value, offset, group=2)), value) == 15 * 8 * 8
    maps, loc, weight = torch.zeros(1, 2, 4, 3, 5), torch.zeros(1, 2, 7, 3, 2), torch.zeros(1, 2, 7, 3)
    sampled = _Only(lambda x: deform_sample(maps, loc, weight, backend="native"))
    assert count_flops(sampled, maps) == 2 * 7 * 3 * 4 * (8 + 2)
    plain = _Only(lambda x: deform_sample(maps, loc, backend="reference"))
    assert count_flops(plain, maps) == 2 * 7 * 3 * 4 * 8  # the same samples through grid_sample
