"""Schedules against reference numbers, optimizers, and what they refuse."""

import json
from pathlib import Path

import pytest
from optimizer_case import Toy, build

from openrec import registry
from openrec.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"
SCHEDULES = json.loads((GOLDEN / "lr_schedules.json").read_text())["schedules"]


@pytest.mark.parametrize("case", SCHEDULES, ids=lambda c: f"{c['name']}-{'-'.join(map(str, c['args'].values()))}")
def test_schedule_equals_reference(case):
    config = {"name": case["name"], **case["args"]}
    if case["name"] in ("StepLR", "MultiStepLR"):
        config["warmup_in_steps"] = True  # T15: the reference counts these two warm-ups in steps
    optimizer, schedule = build(case["optimizer"], config, case["epochs"], case["step_each_epoch"])
    rates, betas = [], []
    for _ in case["lr"]:
        rates.append([group["lr"] for group in optimizer.param_groups])
        betas.append(optimizer.param_groups[0]["betas"][0])
        optimizer.step()
        schedule.step()
    for index in range(len(optimizer.param_groups)):
        assert [r[index] for r in rates] == pytest.approx(case["lr"], rel=1e-9, abs=1e-18)
    if "beta1" in case:
        assert betas == pytest.approx(case["beta1"], rel=1e-9)


@pytest.mark.parametrize("name", registry.names("scheduler"))
def test_resumed_schedule_is_the_same_and_the_end_is_an_error(name):
    extra = {"StepLR": {"step_size": 2}, "MultiStepLR": {"milestones": [1, 3]}}.get(name, {})
    config = {"name": name, **extra}
    optimizer, schedule = build(scheduler=config, epochs=4, steps=3)
    for _ in range(7):
        schedule.step()
    other, resumed = build(scheduler=config, epochs=4, steps=3)
    resumed.load_state_dict(schedule.state_dict())
    for _ in range(5):
        assert resumed.get_last_lr() == schedule.get_last_lr()
        assert other.param_groups[0]["betas"] == optimizer.param_groups[0]["betas"]
        schedule.step()
        resumed.step()
    with pytest.raises(ConfigError, match="step 13 of a schedule of 12 steps"):
        schedule.step()


@pytest.mark.parametrize("extra", [{"name": "StepLR", "step_size": 4}, {"name": "MultiStepLR", "milestones": [5]}])
def test_t15_warmup_of_step_lr_counts_epochs(extra):
    optimizer, schedule = build(scheduler={**extra, "warmup_epoch": 1}, steps=10)
    rates = []
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.step()
    assert rates == pytest.approx([1e-3 * min(1, t / 10) for t in range(12)])


def test_warmup_longer_than_the_run_is_a_warning(caplog):
    _, schedule = build(scheduler={"name": "OneCycleLR", "warmup_epoch": 1.5}, epochs=1)
    rates = [(schedule.get_last_lr()[0], schedule.step())[0] for _ in range(10)]
    assert "longer than the run" in caplog.text and rates == sorted(rates) and rates[0] == pytest.approx(1e-3 / 25)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "OneCycleLR", "warmup_epoch": -2}, "warmup_epoch: expected at least 0, got -2"),
        ({"name": "LinearLR", "warmup_epoch": -2}, "warmup_epoch: expected at least 0, got -2"),
        ({"name": "WarmupCosineLR", "warmup_steps": -2}, "warmup_steps: expected at least 0, got -2"),
        ({"name": "StepLR", "step_size": 0}, "step_size: expected a positive number of epochs, got 0"),
    ],
)
def test_lengths_that_cannot_be(schedule, message):
    with pytest.raises(ConfigError, match=message):
        build({}, schedule, model=Toy())


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "RMSprop", "Adagrad", "Adadelta", "NAdam", "RAdam", "Adamax"])
def test_optimizers_of_torch(name):
    optimizer, _ = build({"name": name, "lr": 0.1, "weight_decay": 0.01, "filter_bias_and_bn": True})
    sum(p.sum() for g in optimizer.param_groups for p in g["params"]).backward()
    optimizer.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "AdamX"}, 'Did you mean "Adam'),
        ({"lr": "1e-4"}, "positive number"),
        ({"momentum": 0.9}, "refused its arguments"),
        ({"name": "LBFGS"}, "LBFGS"),
        ({"lr_mult": {"x": "a"}}, "lr_mult.x"),
    ],
)
def test_refusals_name_the_key(options, message):
    with pytest.raises(ConfigError, match=message):
        build(options)


def test_one_cycle_without_momentum_is_refused():
    with pytest.raises(ConfigError, match="cycle_momentum: False"):
        build({"name": "Adagrad"}, {"name": "OneCycleLR"})
