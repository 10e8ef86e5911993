"""Values that a blanket initialisation would destroy survive the construction of the whole encoder."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openrec.config import load_config
from openrec.modeling import build_model
from openrec.modeling.encoders.svtrv2_mamba import DASSM, DASSMBlock, SVTRv2Mamba
from openrec.modeling.layers import flagged_names, init_svtr

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"depths": [1, 2, 1], "dims": [32, 32, 64], "num_heads": [2, 2, 2], "mixer": ["Conv", "Conv, Mamba", "Mamba"]}


def scans(model):
    return [m for m in model.modules() if isinstance(m, DASSM)]


@pytest.mark.parametrize("mamba_init", ["svtr", "damamba"])
def test_scan_parameters_keep_their_start(mamba_init):
    model = SVTRv2Mamba(**SMALL, mamba_init=mamba_init, d_state=3)
    assert len(scans(model)) == 2
    for scan in scans(model):
        assert scan.da_scan.offset.weight.abs().max() == 0
        assert scan.da_scan.offset.bias.abs().max() == 0
        assert torch.equal(scan.Ds, torch.ones_like(scan.Ds))
        assert torch.equal(scan.A_logs, torch.log(torch.arange(1.0, 4)).expand_as(scan.A_logs))
        step = F.softplus(scan.dt_projs_bias)
        assert step.min() >= 1e-4 * 0.999 and step.max() <= 0.1 * 1.001
        assert step.max() / step.min() > 3  # log-uniform, not one value
        bound = scan.rank**-0.5
        assert bound * 0.8 < scan.dt_projs_weight.abs().max() <= bound
        assert scan.x_proj_weight.abs().max() <= scan.x_proj_weight.shape[1] ** -0.5


def test_decay_of_one_state_is_minus_one():
    for scan in scans(SVTRv2Mamba(**SMALL)):
        assert torch.equal(-torch.exp(scan.A_logs), -torch.ones_like(scan.A_logs))


def test_original_start_of_the_offsets_on_request():
    for scan in scans(SVTRv2Mamba(**SMALL, das_init="trunc_normal")):
        assert 0.01 < scan.da_scan.offset.weight.std() < 0.03


def test_every_flagged_parameter_survives_the_visitor():
    model = SVTRv2Mamba(**SMALL, mixer_cfg={"Mamba": {"layerscale": True}})
    names = flagged_names(model, "_no_reinit")
    assert len(names) >= 2 * 9
    before = {k: v.clone() for k, v in model.named_parameters() if k in names}
    model.apply(init_svtr)
    for name, parameter in model.named_parameters():
        if name in names:
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "rec").glob("**/*_tiny.yml")), ids=lambda p: p.stem)
def test_flagged_parameters_of_every_system_survive_the_visitor(path):
    architecture = load_config(path)["Architecture"]
    architecture["Decoder"]["out_channels"] = 40
    torch.manual_seed(0)
    model = build_model(architecture)
    names = flagged_names(model, "_no_reinit")
    before = {k: v.clone() for k, v in model.named_parameters()}
    model.apply(init_svtr)
    changed = {k for k, v in model.named_parameters() if not torch.equal(v, before[k])}
    assert changed and not changed & names


def test_svtr_visitor():
    model = SVTRv2Mamba(**SMALL)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "offset" not in name:
            assert module.weight.abs().max() <= 2 and 0.015 < module.weight.std() < 0.025
            assert module.bias is None or module.bias.abs().max() == 0
        if isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            assert (module.weight == 1).all() and (module.bias == 0).all()


def test_block_convolutions_have_zero_bias():
    for block in (m for m in SVTRv2Mamba(**SMALL).modules() if isinstance(m, DASSMBlock)):
        for conv in (m for m in block.modules() if isinstance(m, nn.Conv2d) and m.bias is not None):
            assert conv.bias.abs().max() == 0


def test_damamba_weights():
    for block in (m for m in SVTRv2Mamba(**SMALL, mamba_init="damamba").modules() if isinstance(m, DASSMBlock)):
        assert 0.015 < block.mlp.fc1.weight.std() < 0.025
