"""One kernel that samples maps at points, its contract, and the four modules that read by it and nothing else."""

import math
import sys

import pytest
import torch

from openrec import ops
from openrec.modeling.decoders.detr_blocks import MultiScaleDeformableAttention
from openrec.modeling.decoders.true2d_decoder import True2DDecoder
from openrec.modeling.encoders.dassm import Dynamic_Adaptive_Scan
from openrec.modeling.encoders.dat import DATAttention


def test_deform_sample_contract():
    value = torch.randn(2, 3, 4, 5, 7, dtype=torch.float64)
    columns, rows = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (7, 5))
    centres = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)
    loc = centres.reshape(1, 1, 35, 1, 2).expand(2, 3, 35, 1, 2)
    got = ops.deform_sample(value, loc)
    torch.testing.assert_close(got.squeeze(-1), value.flatten(3), rtol=1e-12, atol=1e-12)  # pixel centres
    torch.testing.assert_close(ops.deform_sample(2 * value, loc), 2 * got)  # linear
    ones, inside = torch.ones_like(value), torch.rand(2, 3, 9, 4, 2, dtype=torch.float64) * 0.5 + 0.25
    torch.testing.assert_close(ops.deform_sample(ones, inside), torch.ones(2, 3, 4, 9, 4, dtype=torch.float64))
    assert ops.deform_sample(ones, inside + 3).abs().max() == 0
    weight = torch.rand(2, 3, 9, 4, dtype=torch.float64)
    want = (ops.deform_sample(value, inside) * weight.unsqueeze(2)).sum(-1)
    torch.testing.assert_close(ops.deform_sample(value, inside, weight), want)
    edge = torch.tensor([0.0, 0.5], dtype=torch.float64).expand(2, 3, 1, 1, 2)  # half a pixel left of the first one
    torch.testing.assert_close(ops.deform_sample(ones, edge), torch.full((2, 3, 4, 1, 1), 0.5, dtype=torch.float64))


def test_deform_sample_location_gradient_by_hand():
    v00, v10, v01, v11 = 1.0, 3.0, 2.0, 7.0  # first index x
    value = torch.tensor([[v00, v10], [v01, v11]], dtype=torch.float64).view(1, 1, 1, 2, 2)
    fx, fy = 0.3, 0.6
    loc = torch.tensor([(fx + 0.5) / 2, (fy + 0.5) / 2], dtype=torch.float64).view(1, 1, 1, 1, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(ops.deform_sample(value, loc).sum(), loc)
    want = torch.tensor([(1 - fy) * (v10 - v00) + fy * (v11 - v01), (1 - fx) * (v01 - v00) + fx * (v11 - v10)])
    torch.testing.assert_close(gradient.flatten(), want.double() * 2)


def test_deform_sample_refuses_a_wrong_shape():
    with pytest.raises(ValueError, match=r"loc must be \[B, M, Q, P, 2\]"):
        ops.deform_sample(torch.zeros(1, 2, 3, 4, 5), torch.zeros(1, 2, 6, 2))


# ---------------------------------------------------------------------------- its users


def point_by_point(value, loc, weight=None):
    """``deform_sample`` as a sentence: every point reads four pixels, each by how near it is; nothing is outside."""
    h, w = value.shape[-2:]
    batch, heads, queries, points = loc.shape[:4]
    out = value.new_zeros(batch, heads, value.shape[2], queries, points)
    for b, m, q, p in torch.cartesian_prod(*map(torch.arange, (batch, heads, queries, points))).tolist():
        x, y = (v * n - 0.5 for v, n in zip(loc[b, m, q, p].tolist(), (w, h)))
        for row in (math.floor(y), math.floor(y) + 1):
            for column in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < h and 0 <= column < w:
                    near = (1 - abs(y - row)) * (1 - abs(x - column))
                    out[b, m, :, q, p] += near * value[b, m, :, row, column]
    return out if weight is None else (out * weight.unsqueeze(2)).sum(-1)


def moved(module, name, size=0.5):
    """The module in double precision, its layer of offsets no longer at the start."""
    torch.nn.init.normal_(module.get_parameter(name), std=size)
    return module.double().eval()


def scan(backend="reference"):
    module = moved(Dynamic_Adaptive_Scan(8, 2, op_backend=backend), "offset.weight")
    return lambda x: module(x, x.permute(0, 2, 3, 1) * 2)


def true2d():
    options = {"d_model": 8, "n_layers": 2, "n_head": 2, "d_inner": 8, "max_len": 2, "dropout": 0.0}
    module = True2DDecoder(8, 7, **options)
    for layer in module.layers:
        torch.nn.init.normal_(layer.cross_attn.sampling_offsets.weight)
    label = torch.tensor([[5, 1, 2, 0], [5, 3, 0, 6]])
    return lambda x: module.double().train()(x, data=[label, torch.tensor([2, 1])])


def multi_scale():
    module = moved(MultiScaleDeformableAttention(8, 2, num_levels=2, num_points=2), "sampling_offsets.weight")
    shapes, reference = [(4, 6), (2, 3)], torch.rand(2, 30, 1, 2).double()
    return lambda x: module.attend(torch.cat((x.flatten(2), x.flatten(2)[..., :6]), 2).mT, reference,
                                   torch.cat((x.flatten(2), x.flatten(2)[..., 6:12]), 2).mT, shapes)  # fmt: skip


def dat(pe="none"):
    module = moved(DATAttention(8, 2, 2, rpb_size=(4, 6), pe=pe), "conv_offset.3.weight")
    return lambda x: module(x.permute(0, 2, 3, 1))


# user -> what builds it, where it looks the kernel up, how often a pass reads
USERS = {
    "DAS": (scan, "openrec.ops.dcnv3:deform_sample_ref", 1),
    "True2D": (true2d, "openrec.modeling.decoders.true2d_decoder:deform_sample", 2),  # layers
    "MSDA": (multi_scale, "openrec.ops.ms_deform_attn:deform_sample", 2),  # levels
    "DAT": (dat, "openrec.modeling.encoders.dat:deform_sample", 1),
    "DAT's table": (lambda: dat("rpe"), "openrec.modeling.encoders.dat:deform_sample", 2),
}


@pytest.mark.parametrize("user", USERS)
def test_users_read_by_the_kernel_alone(user, monkeypatch):
    build, place, reads = USERS[user]
    call, x, calls = build(), torch.randn(2, 8, 4, 6).double(), []

    def by_hand(*tensors, **_):
        calls.append(tensors)
        return point_by_point(*tensors)

    want = call(x)
    module, name = place.split(":")
    monkeypatch.setattr(sys.modules[module], name, by_hand)
    torch.testing.assert_close(call(x), want)
    assert len(calls) == reads
    assert all((loc * torch.tensor([6, 4]) - 0.5).frac().abs().max() > 0.05 for _, loc, *_ in calls)  # between pixels
    monkeypatch.setattr(sys.modules[module], name, lambda *tensors, **_: torch.zeros_like(point_by_point(*tensors)))
    assert not torch.allclose(call(x), want)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_faster_forms_of_the_scan_read_the_same(backend):
    outputs = []
    for form in (backend, "reference"):
        torch.manual_seed(1)
        outputs.append(scan(form)(torch.randn(2, 8, 4, 6).double()))
    torch.testing.assert_close(*outputs)
