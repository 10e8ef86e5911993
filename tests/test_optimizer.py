"""Schedules and parameter groups against reference numbers, and what they refuse."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from openrec import registry
from openrec.errors import ConfigError
from openrec.optimizer import build_optimizer

GOLDEN = Path(__file__).parent / "golden"
SCHEDULES = json.loads((GOLDEN / "lr_schedules.json").read_text())["schedules"]
GROUPS = json.loads((GOLDEN / "weight_decay_groups.json").read_text())["models"]


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Linear(3, 4)
        self.body = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.A_log = nn.Parameter(torch.zeros(4, 2))
        self.A_log._no_weight_decay = True
        self.frozen = nn.Parameter(torch.zeros(4, 2), requires_grad=False)

    def no_weight_decay(self):
        return {"patch_embed"}


def build(optimizer=None, scheduler=None, epochs=20, steps=10, model=None):
    return build_optimizer(
        {"name": "AdamW", "lr": 1e-3, **(optimizer or {})},
        scheduler or {"name": "ConstLR"},
        epochs,
        steps,
        model or Toy(),
    )


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


def test_groups_with_and_without_filter():
    model = Toy()
    names = {id(p): n for n, p in model.named_parameters()}
    optimizer, _ = build({"weight_decay": 0.05, "filter_bias_and_bn": True}, model=model)
    first, second = ([names[id(p)] for p in g["params"]] for g in optimizer.param_groups)
    assert first == ["A_log", "patch_embed.weight", "patch_embed.bias", "body.bias", "norm.weight", "norm.bias"]
    assert second == ["body.weight"]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0, 0.05]
    for options in ({"weight_decay": 0.05}, {"filter_bias_and_bn": True}):
        (group,) = build(options, model=model)[0].param_groups
        assert len(group["params"]) == 8  # frozen ones too, as in OpenOCR
        assert group["weight_decay"] == options.get("weight_decay", 0.01)  # torch's own default when absent


def test_lr_mult_that_changes_nothing_names_the_nearest_part(caplog):
    build({"lr_mult": {"bdy": 0.1}}, {"name": "ConstLR"}, model=Toy())
    assert 'no parameter name contains bdy, so nothing changes there. Did you mean "body"?' in caplog.text


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


def test_lr_mult_first_match_wins_and_follows_the_schedule():
    model = Toy()
    options = {"weight_decay": 0.05, "filter_bias_and_bn": True, "lr_mult": {"body.b": 0.1, "body": 0.5, "none": 2}}
    optimizer, schedule = build(options, {"name": "OneCycleLR", "warmup_epoch": 2}, model=model)
    names = {id(p): n for n, p in model.named_parameters()}
    for _ in range(19):
        schedule.step()
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates["body.bias"] == pytest.approx(1e-4) and rates["body.weight"] == pytest.approx(5e-4)
    assert rates["norm.weight"] == pytest.approx(1e-3) and "frozen" not in rates
    decay = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay["body.weight"] == 0.05 and decay["body.bias"] == 0


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


@pytest.mark.parametrize("case", GROUPS, ids=lambda c: f"{c['config']}-{c['Encoder']['use_pos_embed']}")
def test_decay_groups_equal_reference(case):
    from openrec.modeling import build_model

    model = build_model({"in_channels": 3, "Encoder": case["Encoder"], "Decoder": case["Decoder"]})
    names = {id(p): n for n, p in model.named_parameters()}
    optimizer, _ = build({"weight_decay": 0.05, "filter_bias_and_bn": True}, model=model)
    assert sorted(model.no_weight_decay()) == case["no_weight_decay_keywords"]
    for group, expected in zip(optimizer.param_groups, (case["no_decay"], case["decay"])):
        assert [names[id(p)] for p in group["params"]] == expected
