"""Which parameters are decayed, and at what rate each learns."""

import json
from pathlib import Path

import pytest
from optimizer_case import Toy, build

from openrec.config import load_config
from openrec.modeling import build_model

ROOT = Path(__file__).resolve().parents[1]
GROUPS = json.loads((ROOT / "tests" / "golden" / "weight_decay_groups.json").read_text())["models"]
TINY = sorted((ROOT / "configs" / "rec").rglob("*_tiny.yml"))
# Never decayed, whatever their shape: tables of positions, and what sets the pace of a scan. (RCTC's char_token is: the
# reference numbers have it so.)
NEVER = {"rpe_table", "relative_position_bias_table", "pos_embed", "A_log", "A_logs", "D", "Ds", "dt_projs_bias"}


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


@pytest.mark.parametrize("case", GROUPS, ids=lambda c: f"{c['config']}-{c['Encoder']['use_pos_embed']}")
def test_decay_groups_equal_reference(case):
    model = build_model({"in_channels": 3, "Encoder": case["Encoder"], "Decoder": case["Decoder"]})
    names = {id(p): n for n, p in model.named_parameters()}
    optimizer, _ = build({"weight_decay": 0.05, "filter_bias_and_bn": True}, model=model)
    assert sorted(model.no_weight_decay()) == case["no_weight_decay_keywords"]
    for group, expected in zip(optimizer.param_groups, (case["no_decay"], case["decay"])):
        assert [names[id(p)] for p in group["params"]] == expected


@pytest.mark.parametrize("path", TINY, ids=lambda p: p.stem)
def test_systems_decay_matrices_alone_and_find_the_parts_they_slow_down(path):
    config = load_config(path)
    config["Architecture"]["Decoder"]["out_channels"] = 40
    model = build_model(config["Architecture"])
    parameters = dict(model.named_parameters())
    names = {id(p): n for n, p in parameters.items()}
    options, base = config["Optimizer"], config["Optimizer"]["lr"]
    optimizer, _ = build(options, model=model)
    found = {names[id(p)]: (g["weight_decay"], g["lr"] / base) for g in optimizer.param_groups for p in g["params"]}
    assert found.keys() == parameters.keys()
    for name, (decay, factor) in found.items():
        p, patterns = parameters[name], [k for k in options.get("lr_mult") or {} if k in name]
        plain = p.ndim < 2 or getattr(p, "_no_weight_decay", False) or NEVER & set(name.split("."))
        assert not (plain and decay), name
        assert factor == pytest.approx(options["lr_mult"][patterns[0]] if patterns else 1), name
    assert any(decay for decay, _ in found.values()) or not options["weight_decay"]
