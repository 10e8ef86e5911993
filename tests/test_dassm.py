"""DA-Mamba blocks: stored numbers, and the scan's properties by definition (``SVTRv2Mamba``'s building blocks)."""

import pytest
import torch
from golden_check import check_module, load_cases
from torch import nn

from openrec.errors import ConfigError
from openrec.modeling.encoders.svtrv2_mamba import (
    DASSM,
    ConvFFN,
    DASSMBlock,
    Dynamic_Adaptive_Scan,
    LayerNorm2d,
    ResDWC,
)

CASES = load_cases("index_encoders.json")


def block(token_mixer, **arguments):
    assert token_mixer == "DASSM"
    return DASSMBlock(**arguments)


CLASSES = {
    "Dynamic_Adaptive_Scan": Dynamic_Adaptive_Scan,
    "DASSM": DASSM,
    "Block": block,
    "ConvFFN": ConvFFN,
    "LayerNorm": LayerNorm2d,
    "ResDWC": ResDWC,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case["target"] in CLASSES])
def test_golden(case, dtype):
    case = CASES[case]
    check_module(case, lambda: CLASSES[case["target"]](**case["args"]), dtype)


def randomised(module, std=0.1):
    for p in module.parameters():
        with torch.no_grad():
            p.add_(torch.randn_like(p) * std)
    return module


@pytest.mark.parametrize("options", [{}, {"d_state": 4}, {"expand": 2}, {"dt_rank": 3, "dt_init": "constant"}])
def test_fast_path_equals_reference(options):
    fast = randomised(DASSM(32, **options)).double()
    slow = DASSM(32, op_backend="reference", **options).double()
    slow.load_state_dict(fast.state_dict())
    x = torch.randn(2, 32, 4, 9, dtype=torch.float64)
    out = [m(x) for m in (fast, slow)]
    torch.testing.assert_close(*out)
    gradients = [torch.autograd.grad(o.square().sum(), m.parameters()) for o, m in zip(out, (fast, slow))]
    for got, want in zip(*gradients):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_no_input_map_leaves_only_the_direct_path():
    dassm = DASSM(32)
    nn.init.normal_(dassm.Ds)
    x = torch.randn(2, 32, 4, 6)
    with torch.no_grad():
        dassm.x_proj_weight[dassm.rank : dassm.rank + dassm.d_state] = 0  # B
    assert torch.equal(dassm.scan(x), dassm.Ds.view(-1, 1, 1) * x)


def test_tiny_step_leaves_only_the_direct_path():
    dassm = DASSM(32).double()
    with torch.no_grad():
        dassm.dt_projs_weight.zero_()
        dassm.dt_projs_bias.fill_(-20)
    x = torch.randn(2, 32, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(dassm.scan(x), dassm.Ds.view(-1, 1, 1) * x, rtol=0, atol=1e-6)


def test_huge_step_forgets():
    dassm = DASSM(32).double()
    with torch.no_grad():
        dassm.dt_projs_bias.fill_(30)
    x = torch.randn(1, 32, 2, 5, dtype=torch.float64)
    changed = x.clone()
    changed[..., 0, :3] += 1
    same = torch.isclose(dassm.scan(x), dassm.scan(changed), atol=1e-9).all(1).flatten()
    assert same.tolist() == [False] * 3 + [True] * 7


def identity_convolutions(module):
    with torch.no_grad():
        for conv in module.modules():
            if isinstance(conv, nn.Conv2d) and conv.kernel_size[0] > 1:
                conv.weight.zero_()
                conv.weight[..., conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    return module


@pytest.mark.parametrize("order", ["row", "col"])
def test_causality(order):
    """With zero offsets and pointwise convolutions no output depends on a later position of the raster."""
    dassm = identity_convolutions(DASSM(32, scan_order=order)).double()
    x = torch.randn(1, 32, 3, 5, dtype=torch.float64)
    changed = x.clone()
    changed[..., 1, 2] += 1
    differs = ~torch.isclose(dassm(x), dassm(changed), atol=1e-12).all(1)[0]
    y, x_ = torch.meshgrid(torch.arange(3), torch.arange(5), indexing="ij")
    later = (y * 5 + x_ >= 7) if order == "row" else (x_ * 3 + y >= 7)
    assert torch.equal(differs, later)


def test_convffn_dropout_and_depth_reach_the_block():
    made = DASSMBlock(32, drop=0.3, drop_path=0.2)
    assert made.token_mixer.dropout.p == made.mlp.drop.p == 0.3
    assert made.drop_path.p == 0.2


@pytest.mark.parametrize("dim, count", [(64, 47_624), (128, 179_216), (256, 694_304), (384, 1_545_264)])
def test_parameter_count(dim, count):
    assert sum(p.numel() for p in DASSMBlock(dim).parameters()) == count


def test_damamba_identity_kernels_are_dropped_on_load():
    made = DASSMBlock(32)
    state = dict(made.state_dict())
    assert not any("identity" in k for k in state)
    for prefix in ("pos_embed.", "mlp.conv."):
        state[prefix + "conv_constant"] = torch.zeros(1, 1, 3, 3)
    made.load_state_dict(state)  # strict


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_layout_does_not_change_the_numbers(channels_last):
    made = randomised(DASSMBlock(32)).eval()
    x = torch.randn(2, 32, 4, 6)
    given = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    torch.testing.assert_close(made(given), made(x), rtol=1e-5, atol=1e-5)


def test_identity_kernel_is_added_apart_under_autocast():
    made = ResDWC(16)
    nn.init.normal_(made.conv.weight, std=1e-3)
    nn.init.zeros_(made.conv.bias)
    x = torch.randn(2, 16, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        got = made(x).float()
    torch.testing.assert_close(got, made(x), rtol=0, atol=2e-4)  # folded into 1 + w: 4e-3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"head_dim": 5}, "cannot be split into groups of head_dim 5"),
        ({"scan_order": "spiral"}, "scan_order must be"),
        ({"dt_init": "simple"}, "dt_init must be"),
        ({"das_init": "one"}, "das_init must be"),
        ({"d_conv": 4}, "d_conv must be odd"),
        ({"op_backend": "fast"}, "backend must be one of"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        DASSM(32, **arguments)(torch.zeros(1, 32, 2, 2))
    assert "op_backend" in arguments or isinstance(error.value, ConfigError)  # a sentence for who wrote the YAML
