"""Mamba1D and BiMamba1D: the scan as a loop, what may look at what, and how they start."""

import pytest
import torch
import torch.nn.functional as F
from golden_check import check_op, load_cases

from openrec.errors import ConfigError
from openrec.modeling.encoders.mamba1d import Mamba1D, Mamba1DBlock, causal_conv
from openrec.modeling.encoders.svtrv2_mamba import DASSMBlock, SVTRv2Mamba
from openrec.modeling.layers import flagged_names
from openrec.ops import causal_conv1d

CONVOLUTIONS = {k: v for k, v in load_cases("index_ops.json").items() if "causal_conv1d/" in k and "init" not in k}


def layer(**options):
    return Mamba1D(**{"d_model": 8, "d_state": 4, **options}).double()


def direction_by_hand(scan, a, z):
    """One direction, token by token."""
    weight, width = scan.conv1d.weight[:, 0], scan.conv1d.weight.shape[-1]
    state = a.new_zeros(a.shape[0], a.shape[2], scan.d_state)
    outputs = []
    for t in range(a.shape[1]):
        seen = [(t - k, weight[:, width - 1 - k]) for k in range(width) if t >= k]
        u = F.silu(scan.conv1d.bias + sum(a[:, s] * w for s, w in seen))
        step, b, c = scan.x_proj(u).split((scan.rank, scan.d_state, scan.d_state), -1)
        delta = F.softplus(scan.dt_proj(step))
        state = torch.exp(delta[..., None] * -torch.exp(scan.A_log)) * state + (delta * u)[..., None] * b[:, None]
        outputs.append((state * c[:, None]).sum(-1) + scan.D * u)
    return torch.stack(outputs, 1) * F.silu(z)


@pytest.mark.parametrize("d_conv", [2, 3, 4])
@pytest.mark.parametrize("d_state", [1, 4, 16])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_scan_equals_the_loop(d_conv, d_state, bidirectional):
    module = layer(d_conv=d_conv, d_state=d_state, bidirectional=bidirectional)
    tokens = torch.randn(2, 11, 8).double()
    a, z = module.in_proj(tokens).chunk(2, -1)
    expected = direction_by_hand(module, a, z)
    if bidirectional:
        expected = expected + direction_by_hand(module.backward_scan, a.flip(1), z.flip(1)).flip(1)
    torch.testing.assert_close(module.mix(tokens), module.out_proj(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
@pytest.mark.parametrize("reverse", [False, True])
def test_convolution_equals_the_published_one(case, reverse):
    def call(inputs, args):
        x = inputs["x"].transpose(1, 2)
        y = causal_conv(x.flip(1) if reverse else x, inputs["weight"], inputs.get("bias"), reverse)
        y = (y.flip(1) if reverse else y).transpose(1, 2)
        return {"out": F.silu(y) if args["activation"] else y}

    check_op(case, call, torch.float64)


@pytest.mark.parametrize("width", [2, 3, 4])
def test_convolution_equals_the_operator(width):
    x, weight, bias = torch.randn(2, 9, 6), torch.randn(6, width), torch.randn(6)
    expected = causal_conv1d(x.transpose(1, 2), weight, bias).transpose(1, 2)
    torch.testing.assert_close(causal_conv(x, weight, bias), expected)


def reach(module, t, length=12):
    """Tokens whose output changes with token ``t``."""
    tokens = torch.randn(1, length, 8).double()
    changed = tokens.clone()
    changed[:, t] += 1
    return set((module.mix(tokens) - module.mix(changed)).abs().amax((0, 2)).nonzero().flatten().tolist())


def test_causality():
    assert reach(layer(), 5) == set(range(5, 12))
    both = layer(bidirectional=True)
    assert reach(both, 5) == set(range(12))
    assert both.backward_scan.reverse and not both.reverse
    tokens = torch.randn(1, 12, 16).double()
    late = tokens.clone()
    late[:, :5] += 1
    assert torch.equal(both.backward_scan(tokens)[:, 5:], both.backward_scan(late)[:, 5:])


def test_bidirectional_symmetry():
    """With equal parameters in both directions, turning the sequence around turns the output around."""
    module = layer(bidirectional=True)
    forward = {k: v for k, v in module.state_dict().items() if k in module.backward_scan.state_dict()}
    module.backward_scan.load_state_dict(forward)
    tokens = torch.randn(2, 10, 8).double()
    torch.testing.assert_close(module.mix(tokens.flip(1)), module.mix(tokens).flip(1))
    torch.nn.init.zeros_(module.backward_scan.D)
    assert not torch.allclose(module.mix(tokens.flip(1)), module.mix(tokens).flip(1))


def test_reading_order_of_the_map():
    rows, columns = layer(), layer(scan_order="col")
    columns.load_state_dict(rows.state_dict())
    x = torch.randn(2, 8, 3, 5).double()
    torch.testing.assert_close(columns(x), rows(x.transpose(2, 3)).transpose(2, 3))
    tokens = x.permute(0, 2, 3, 1).reshape(2, 15, 8)
    torch.testing.assert_close(rows(x), rows.mix(tokens).view(2, 3, 5, 8).permute(0, 3, 1, 2))


def test_gradients_equal_those_of_the_reference_operator():
    module = layer(bidirectional=True)
    slow = layer(bidirectional=True, op_backend="reference")
    slow.load_state_dict(module.state_dict())
    tokens = torch.randn(2, 9, 8).double()
    grads = [torch.autograd.grad(m.mix(tokens).square().sum(), list(m.parameters())) for m in (module, slow)]
    for got, want in zip(*grads):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["Mamba1D", "BiMamba1D"])
def test_in_the_skeleton(name):
    model = SVTRv2Mamba(
        dims=[16, 32], depths=[1, 2], num_heads=[2, 2], mixer=["Conv", f"{name}*2"], use_pos_embed=False,
        final_norm=True, mixer_cfg={name: {"d_state": 8}},
    )  # fmt: skip
    assert model(torch.randn(2, 3, 32, 64)).shape == (2, 32, 8, 16)  # the last stage has no transition
    scans = [m for m in model.modules() if hasattr(m, "A_log")]
    assert len(scans) == (4 if name == "BiMamba1D" else 2)
    undecayed = flagged_names(model)
    for scan in scans:
        assert torch.equal(scan.A_log, torch.log(torch.arange(1.0, 9)).expand_as(scan.A_log))
        assert torch.equal(scan.D, torch.ones_like(scan.D))
        step = F.softplus(scan.dt_proj.bias)
        assert step.min() >= 0.99e-4 and step.max() <= 0.101 and step.max() / step.min() > 3
        assert scan.rank**-0.5 * 0.7 < scan.dt_proj.weight.abs().max() <= scan.rank**-0.5
    for part in (".A_log", ".D", ".dt_proj.bias"):
        assert {n for n, _ in model.named_parameters() if n.endswith(part)} <= undecayed


@pytest.mark.parametrize("name", ["Mamba", "Mamba1D", "BiMamba1D"])
def test_the_encoder_says_order_and_backend_once_for_all_scans(name):
    model = {"dims": [16], "depths": [1], "num_heads": [1], "mixer": [name], "sub_k": [[1, 1]]}
    for given, order in (({}, "col"), ({name: {"scan_order": "row"}}, "row")):
        encoder = SVTRv2Mamba(**model, scan_order="col", op_backend="reference", mixer_cfg=given)
        layer = encoder.stages[0].blocks[0].token_mixer
        assert (layer.scan_order, layer.op_backend) == (order, "reference")
        assert {m.op_backend for m in layer.modules() if hasattr(m, "op_backend")} == {"reference"}


def test_frame_is_that_of_the_adaptive_block():
    def frame(block):
        return {k: v.shape for k, v in block.state_dict().items() if not k.startswith("token_mixer")}

    assert frame(Mamba1DBlock(32)) == frame(DASSMBlock(32))
    names = {"in_proj.weight", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"}
    assert set(Mamba1D(32).state_dict()) == names | {"A_log", "D", "out_proj.weight"}  # as mamba's own


def test_autocast():
    module = Mamba1D(32, bidirectional=True)
    x = torch.randn(2, 32, 4, 12)
    with torch.autocast("cpu", torch.bfloat16):
        low = module(x)
    out = module(x)
    assert (low.float() - out).norm() / out.norm() < 2e-2


@pytest.mark.parametrize("options", [{"d_conv": 5}, {"scan_order": "diagonal"}])
def test_refusals(options):
    with pytest.raises(ConfigError, match="must be"):
        Mamba1D(8, **options)
    with pytest.raises(ConfigError, match="has no such key"):
        SVTRv2Mamba(mixer_cfg={"Mamba1D": {"bidirectional": True}})
