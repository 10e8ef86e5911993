"""Operators against stored numbers, against their references, and against what they must do by definition."""

import math
import os
import sys

import pytest
import torch
from golden_check import call_dcnv3, call_scan, check_op, load_cases

from openrec import ops

CASES = load_cases("index_encoders.json")
DTYPES = [torch.float32, torch.float64]


def ids(group):
    return [name for name in CASES if name.split("/")[0] == group]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ids("dcnv3"))
def test_dcnv3_golden(case, dtype):
    check_op(CASES[case], call_dcnv3, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ids("selective_scan"))
def test_selective_scan_golden(case, dtype):
    check_op(CASES[case], call_scan, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ids("selective_scan_state"))
def test_selective_scan_state_golden(case, dtype):
    check_op(CASES[case], lambda i, a: {"h": ops.selective_scan_state(**i, **a)}, dtype)


# ---------------------------------------------------------------------------- adaptive scan / dcnv3


def scan_input(b=2, h=4, w=6, c=8, group=2, dtype=torch.float64):
    return torch.randn(b, h, w, c, dtype=dtype), torch.zeros(b, h, w, group * 2, dtype=dtype)


# Only the reference goes through grid_sample, whose normalised coordinates round.
rounding = os.environ.get("OPENREC_OPS") == "reference"


@pytest.mark.skipif(rounding, reason="the reference is exact to rounding only")
def test_zero_offsets_return_the_map_exactly():
    x, offset = scan_input(dtype=torch.float32)
    assert torch.equal(ops.dcnv3(x, offset, group=2), x)


@pytest.mark.parametrize("dx, dy", [(1, 0), (-2, 0), (0, 1), (2, -1), (9, 0)])
def test_integer_offsets_shift_with_zero_fill(dx, dy):
    x, offset = scan_input()
    offset = offset + torch.tensor([dx, dy] * 2)
    want = torch.zeros_like(x)
    for y in range(4):
        for i in range(6):
            if 0 <= y + dy < 4 and 0 <= i + dx < 6:
                want[:, y, i] = x[:, y + dy, i + dx]
    got = ops.dcnv3(x, offset, group=2)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12 if rounding else 0)


def test_half_offsets_average_neighbours():
    x, offset = scan_input()
    offset = offset + torch.tensor([0.5, 0.0] * 2)
    got = ops.dcnv3(x, offset, group=2)
    torch.testing.assert_close(got[:, :, :-1], (x[:, :, :-1] + x[:, :, 1:]) / 2)
    torch.testing.assert_close(got[:, :, -1], x[:, :, -1] / 2)  # half outside: half the edge value


def test_group_permutation_commutes():
    x, offset = scan_input()
    offset = torch.randn_like(offset)
    swap_x = x.view(2, 4, 6, 2, 4).flip(3).reshape_as(x)
    swap_o = offset.view(2, 4, 6, 2, 2).flip(3).reshape_as(offset)
    want = ops.dcnv3(x, offset, group=2).view(2, 4, 6, 2, 4).flip(3).reshape_as(x)
    assert torch.equal(ops.dcnv3(swap_x, swap_o, group=2), want)


@pytest.mark.parametrize("kernel, stride, pad, dilation", [(1, 1, 0, 1), (3, 2, 1, 1), ((1, 3), (1, 2), (0, 1), 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_dcnv3_equals_its_reference(kernel, stride, pad, dilation, masked):
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    x = torch.randn(3, 5, 8, 12, dtype=torch.float64, requires_grad=True)
    height, width = {(1, 1): (5, 8), (3, 3): (3, 4), (1, 3): (5, 4)}[kh, kw]
    offset = torch.randn(3, height, width, 3 * kh * kw * 2, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(3, height, width, 3 * kh * kw, dtype=torch.float64, requires_grad=True) if masked else None
    leaves = [t for t in (x, offset, mask) if t is not None]
    results = []
    for op in (ops.dcnv3, ops.dcnv3_ref):
        out = op(x, offset, mask, kernel, stride, pad, dilation, 3, 1.5)
        results.append([out, *torch.autograd.grad((out**2).sum(), leaves)])
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_dcnv3_gradcheck():
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    offset = (torch.rand(1, 3, 4, 4, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()  # away from the kinks
    assert torch.autograd.gradcheck(lambda a, b: ops.dcnv3(a, b, group=2), (x, offset))


def test_offset_gradient_lives_at_zero_start():
    x, offset = scan_input()
    offset.requires_grad_()
    ops.dcnv3(x, offset, group=2).square().sum().backward()
    assert offset.grad.abs().max() > 0


def test_far_and_broken_offsets_are_harmless():
    x, offset = scan_input(dtype=torch.float32)
    for value in (1e30, -1e30, float("inf"), float("-inf")):
        assert torch.equal(ops.dcnv3(x, offset + value, group=2), torch.zeros_like(x))
    assert torch.equal(ops.dcnv3(x, offset + float("nan"), group=2), torch.zeros_like(x))  # nowhere is outside


def test_coordinates_stay_exact_under_autocast():
    x, offset = scan_input(w=64, dtype=torch.float32)
    offset = offset + 0.3
    with torch.autocast("cpu", torch.bfloat16):
        got = ops.dcnv3(x, offset, group=2)
    torch.testing.assert_close(got, ops.dcnv3(x, offset, group=2), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"group": 3}, "8 channels cannot be split into 3 groups"),
        ({"kernel_size": 3}, "offset must be"),
        ({"backend": "cudnn"}, "backend must be one of"),
        ({"kernel_size": 2, "remove_center": True}, "odd kernel"),
        ({"kernel_size": 9}, "smaller than the kernel"),
    ],
)
def test_dcnv3_refusals(change, message):
    x, offset = scan_input()
    with pytest.raises(ValueError, match=message):
        ops.dcnv3(x, offset, **{"group": 2, **change})


# ---------------------------------------------------------------------------- selective scan


def scan_arguments(n, length, groups=None, batch=2, dim=4, dtype=torch.float64):
    maps = (batch, n, length) if groups is None else (batch, groups, n, length)
    tensors = {
        "u": torch.randn(batch, dim, length, dtype=dtype),
        "delta": torch.randn(batch, dim, length, dtype=dtype),
        "A": -torch.rand(dim, n, dtype=dtype) - 0.1,
        "B": torch.randn(maps, dtype=dtype),
        "C": torch.randn(maps, dtype=dtype),
        "D": torch.randn(dim, dtype=dtype),
        "z": torch.randn(batch, dim, length, dtype=dtype),
        "delta_bias": torch.randn(dim, dtype=dtype),
    }
    return {k: v.requires_grad_() for k, v in tensors.items()}


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("length, groups", [(1, None), (31, 2), (64, None), (100, 4)])
@pytest.mark.parametrize("chunked", [False, True])
def test_scan_equals_its_reference(n, length, groups, chunked, monkeypatch):
    monkeypatch.setattr(sys.modules["openrec.ops.selective_scan"], "SMALL_STEP", math.inf if chunked else 0)
    arguments = scan_arguments(n, length, groups)
    results = []
    for op in (ops.selective_scan, ops.selective_scan_ref):
        out, last = op(**arguments, delta_softplus=True, return_last_state=True)
        assert not last.requires_grad
        results.append([out, last, *torch.autograd.grad(out.square().sum(), list(arguments.values()))])
    for got, want in zip(*results):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_scan_gradcheck():
    arguments = scan_arguments(2, 5, batch=1, dim=2)
    names = list(arguments)
    assert torch.autograd.gradcheck(
        lambda *t: ops.selective_scan(**dict(zip(names, t)), delta_softplus=True), list(arguments.values())
    )


def test_scan_with_groups_of_different_count():
    arguments = scan_arguments(2, 40)
    arguments["B"] = torch.randn(2, 2, 2, 40, dtype=torch.float64)
    arguments["C"] = torch.randn(2, 4, 2, 40, dtype=torch.float64)
    torch.testing.assert_close(ops.selective_scan(**arguments), ops.selective_scan_ref(**arguments))


def test_state_and_output_agree():
    a = scan_arguments(3, 50)
    h = ops.selective_scan_state(a["u"], a["delta"], a["A"], a["B"], a["delta_bias"], True)
    y = torch.einsum("bdnl,bnl->bdl", h, a["C"])
    want = ops.selective_scan(a["u"], a["delta"], a["A"], a["B"], a["C"], None, None, a["delta_bias"], True)
    torch.testing.assert_close(y, want)


def test_scan_computes_in_float32_under_autocast():
    arguments = {k: v.detach().float() for k, v in scan_arguments(1, 64).items()}
    want = ops.selective_scan(**arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ops.selective_scan(**arguments), want)
    half = {k: v.bfloat16() if k in ("u", "delta", "B", "C", "z") else v for k, v in arguments.items()}
    out = ops.selective_scan(**half)
    assert out.dtype == torch.bfloat16
    assert (out.float() - want).norm() / want.norm() < 3e-2


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("A", (3, 2), r"A must be \[D, N\] = \(4, \*\), got \(3, 2\)"),
        ("B", (2, 3, 2, 8), "cannot be split over the 3 groups of B"),
        ("delta", (2, 4, 7), "delta must be"),
        ("D", (5,), "D must be"),
    ],
)
def test_scan_refusals(name, shape, message):
    arguments = scan_arguments(2, 8)
    arguments[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        ops.selective_scan(**arguments)


def test_complex_decay_is_refused():
    arguments = scan_arguments(2, 8)
    arguments["A"] = torch.zeros(4, 2, dtype=torch.complex64)
    with pytest.raises(TypeError, match="A must hold real"):
        ops.selective_scan(**arguments)


def test_available_says_why_not():
    answer = ops.available()
    assert answer["torch"] == "ok"
    assert all(answer.values())
