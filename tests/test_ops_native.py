"""The compiled operators against float64 references, for every instruction set this machine can run."""

import copy
import functools
import math
import os
import subprocess
import sys

import pytest
import torch
from op_cases import ALL, compare

from openrec import ops
from openrec.ops._load import native

pytestmark = pytest.mark.skipif("cpu" in native.reasons, reason=f"not compiled: {native.reasons.get('cpu')}")
F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
LEVELS = native.isa_levels() or ["none"]


@pytest.fixture(params=LEVELS)
def isa(request):
    before = native.isa
    native.force_isa(request.param)
    yield request.param
    native.force_isa(before)


@pytest.mark.parametrize("case", ALL, ids=lambda c: c.id)
def test_raw_operators(case, isa):
    inputs = case.inputs()
    compare(case, case.run(torch.ops.openrec, inputs), case.expected(inputs))


# -------------------------------------------------------------------------------------------------------------- helpers


def scan_arguments(dim=5, length=9, n=2, groups=1, batch=2, dtype=F64, z=True, channels_last=False):
    shape = (batch, length, dim) if channels_last else (batch, dim, length)
    maps = (batch, length, groups, n) if channels_last else (batch, groups, n, length)
    return {
        "u": torch.randn(shape, dtype=dtype),
        "delta": torch.randn(shape, dtype=dtype),
        "A": -torch.rand(dim, n, dtype=F64 if dtype == F64 else F32) - 0.1,
        "B": torch.randn(maps, dtype=dtype),
        "C": torch.randn(maps, dtype=dtype),
        "D": torch.randn(dim, dtype=F64 if dtype == F64 else F32),
        "z": torch.randn(shape, dtype=dtype) if z else None,
        "delta_bias": torch.randn(dim, dtype=F64 if dtype == F64 else F32),
    }


def results(op, tensors, weight=None, **options):
    """Output and all gradients."""
    leaves = {k: None if t is None else t.detach().requires_grad_() for k, t in tensors.items()}
    out = op(**leaves, **options)
    weight = torch.randn(out.shape, dtype=out.dtype) if weight is None else weight
    grads = torch.autograd.grad(out, [t for t in leaves.values() if t is not None], weight)
    return [out, *grads]


def assert_close(got, want, tolerance):
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        a, b = a.detach(), b.detach()
        scale = max(float(b.abs().max()), 1e-3) if b.numel() else 1.0
        error = float((a.double() - b.double()).abs().max()) / scale if b.numel() else 0.0
        assert error <= tolerance, f"result {i}: relative error {error:.1e}, allowed {tolerance:.1e}"


def both(op, reference, tensors, tolerance, **options):
    """Compiled against the reference on the same tensors, the reference in float64."""
    wide = {k: None if t is None else t.double() for k, t in tensors.items()}
    torch.manual_seed(1)
    want = reference(**wide, **options)
    weight = torch.randn_like(want)
    want = results(reference, wide, weight, **options)
    first = next(iter(tensors.values()))
    got = results(op, tensors, weight.to(first.dtype), backend="native", **options)
    assert_close(got, want, tolerance)


# -------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("length", [1, 2, 31, 33, 127, 255, 256, 257, 511, 512, 513, 1023, 1025, 2049])
@pytest.mark.parametrize("channels_last", [False, True])
def test_scan_lengths(length, channels_last, isa):
    tensors = scan_arguments(17, length, 1, batch=1, dtype=F32, channels_last=channels_last)
    both(ops.selective_scan, ops.selective_scan_ref, tensors, 5e-5, delta_softplus=True, channels_last=channels_last)


@pytest.mark.parametrize("dim", [1, 3, 8, 16, 24, 64, 100, 130])
@pytest.mark.parametrize("n", [1, 3])
def test_scan_widths(dim, n, isa):
    both(ops.selective_scan, ops.selective_scan_ref, scan_arguments(dim, 40, n, dtype=F32), 5e-5, delta_softplus=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("n", [1, 4])
def test_long_sequence_is_run_in_stretches(n, reverse):
    tensors = scan_arguments(6, 3000, n, batch=1)
    both(ops.selective_scan, ops.selective_scan_ref, tensors, 1e-10, delta_softplus=True, reverse=reverse)


def strided(t):
    """The same numbers with an odd storage offset and gaps between rows."""
    store = torch.zeros(*t.shape[:-1], t.shape[-1] + 3, dtype=t.dtype).flatten()
    store = torch.cat((store, store.new_zeros(1)))[1:].view(*t.shape[:-1], t.shape[-1] + 3)
    view = store[..., 2 : 2 + t.shape[-1]]
    return view.copy_(t)


LAYOUTS = {
    "misaligned": strided,
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.ndim > 1 else t,
    "reversed axes": lambda t: t.permute(*reversed(range(t.ndim))).contiguous().permute(*reversed(range(t.ndim))),
    "every second": lambda t: torch.stack((t, torch.full_like(t, math.nan)), -1).flatten(-2)[..., ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_strided_inputs_give_the_same_numbers(layout, dtype):
    change = LAYOUTS[layout]

    def same(op, tensors, **options):
        torch.manual_seed(2)
        want = results(op, tensors, backend="native", **options)
        torch.manual_seed(2)
        moved = {k: None if t is None else change(t) for k, t in tensors.items()}
        assert_close(results(op, moved, backend="native", **options), want, {F64: 1e-12, F32: 1e-5, BF16: 1e-2}[dtype])

    same(ops.selective_scan, scan_arguments(18, 37, 2, dtype=dtype), delta_softplus=True)
    offset = torch.randn(2, 5, 6, 8, dtype=dtype)
    same(ops.dcnv3, {"input": torch.randn(2, 5, 6, 32, dtype=dtype), "offset": offset}, group=4)
    loc, weight = torch.rand(2, 3, 7, 4, 2, dtype=dtype), torch.rand(2, 3, 7, 4, dtype=dtype)
    same(ops.deform_sample, {"value": torch.randn(2, 3, 5, 6, 4, dtype=dtype), "loc": loc, "weight": weight})


@pytest.mark.parametrize("constant", ["B", "C", "both"])
def test_constant_and_expanded_maps(constant):
    tensors = scan_arguments(4, 20, 3, z=False)
    fixed = torch.randn(4, 3, dtype=F64)
    for name in "BC":
        tensors[name] = fixed if constant in (name, "both") else tensors[name]
    both(ops.selective_scan, ops.selective_scan_ref, tensors, 1e-10)
    expanded = {**tensors, "B": torch.randn(1, 1, 3, 1, dtype=F64).expand(2, 2, 3, 20), "C": fixed}
    both(ops.selective_scan, ops.selective_scan_ref, expanded, 1e-10)


def test_maps_grouped_differently():
    tensors = scan_arguments(12, 20, 2)
    tensors["B"], tensors["C"] = torch.randn(2, 2, 2, 20, dtype=F64), torch.randn(2, 3, 2, 20, dtype=F64)
    both(ops.selective_scan, ops.selective_scan_ref, tensors, 1e-10, delta_softplus=True)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_directions_and_layouts_mean_the_same(reverse, channels_last):
    a = scan_arguments(6, 50, 2, groups=2)
    want, last = ops.selective_scan(**a, delta_softplus=True, return_last_state=True, reverse=reverse)
    if reverse:
        flipped = {k: t.flip(-1) if k in ["u", "delta", "z", "B", "C"] else t for k, t in a.items()}
        again, other = ops.selective_scan_ref(**flipped, delta_softplus=True, return_last_state=True)
        torch.testing.assert_close(want, again.flip(-1), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(last, other, rtol=1e-10, atol=1e-10)
    if channels_last:
        b = {**a, **{k: a[k].transpose(1, 2) for k in ("u", "delta", "z")}}
        b |= {k: a[k].permute(0, 3, 1, 2) for k in "BC"}
        got = ops.selective_scan(**b, delta_softplus=True, reverse=reverse, channels_last=True)
        torch.testing.assert_close(got.transpose(1, 2), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n, groups", [(1, 1), (3, 1), (2, 2)])
def test_state_form(n, groups):
    a = scan_arguments(4, 33, n, groups, z=False)
    a = {k: a[k] for k in ("u", "delta", "A", "B", "delta_bias")}
    both(ops.selective_scan_state, ops.selective_scan_state_ref, a, 1e-10, delta_softplus=True)


# ------------------------------------------------------------------------------------------------------ borders and NaN


@pytest.mark.parametrize("height, width", [(4, 8), (1, 8), (4, 1), (1, 1), (5, 6)])
@pytest.mark.parametrize("masked", [False, True])
def test_borders_follow_the_reference(height, width, masked, isa):
    """Exactly on pixels and borders the derivative is that of the right cell, as in the reference."""
    edges = [-1e9, -2.0, -1.0, -1.0 + 1e-6, -0.5, 0.0, 0.5, -1e-9]
    edges += [k + e for k in (height - 1, width - 1) for e in (-1e-6, 0.0, 1e-6, 1.0, 1.0 - 1e-6)]
    points = torch.tensor([(x, y) for x in edges for y in edges], dtype=F64)
    here = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1)  # [H, W, (x, y)]
    batch = math.ceil(len(points) / (height * width))
    at = torch.cat((points, points[: batch * height * width - len(points)]))[: batch * height * width]
    if len(at) < batch * height * width:
        at = at.repeat(2, 1)[: batch * height * width]
    offset = at.view(batch, height, width, 2) - here
    tensors = {"input": torch.randn(batch, height, width, 16, dtype=F64), "offset": offset}
    if masked:
        tensors["mask"] = torch.rand(batch, height, width, 1, dtype=F64)
    # The reference goes through normalised coordinates, which only powers of two keep exact.
    exact = (height & (height - 1), width & (width - 1)) == (0, 0)
    both(ops.dcnv3, ops.dcnv3_ref if exact else functools.partial(ops.dcnv3, backend="torch"), tensors, 1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9])
@pytest.mark.parametrize("backend", ["native", "torch", "reference"])
def test_broken_coordinates_read_and_send_back_nothing(bad, backend):
    x = torch.randn(1, 3, 4, 16)
    offset = torch.zeros(1, 3, 4, 2)
    offset[0, 1, 2, 0] = bad
    x.requires_grad_()
    offset.requires_grad_()
    out = ops.dcnv3(x, offset, backend=backend)
    assert out[0, 1, 2].abs().max() == 0
    d_x, d_offset = torch.autograd.grad(out.sum(), (x, offset))
    assert d_x[0, 1, 2].abs().max() < 1e-6 and d_x.isfinite().all()  # the reference rounds its coordinates
    assert d_offset[0, 1, 2].abs().max() == 0 and d_offset.isfinite().all()
    loc = torch.full((1, 1, 2, 1, 2), 0.5)
    loc[0, 0, 1, 0, 1] = bad
    out = ops.deform_sample(torch.ones(1, 1, 3, 4, 4), loc, backend=backend)
    assert out[..., 0, :].eq(1).all() and out[..., 1, :].eq(0).all()


def test_nan_passes_through_the_scan(isa):
    a = scan_arguments(20, 40, 1, dtype=F32, z=False)
    a["delta"][0, 3, 10] = math.nan
    y = ops.selective_scan(**a, delta_softplus=True)
    assert y[0, 3, 10:].isnan().all() and y[0, 3, :10].isfinite().all()
    assert y[0, 4].isfinite().all() and y[1].isfinite().all()


@pytest.mark.parametrize("value", [-100.0, -20.0, -7.0, 0.0, 20.0, 20.1, 100.0])
def test_extreme_steps(value, isa):
    a = scan_arguments(16, 30, 1, dtype=F32, z=False)
    a["delta"] = torch.full_like(a["delta"], value)
    a["delta_bias"] = torch.zeros(16)
    both(ops.selective_scan, ops.selective_scan_ref, a, 2e-6, delta_softplus=True)


def test_long_memory(isa):
    a = scan_arguments(16, 1024, 1, batch=1, dtype=F32, z=False)
    a["A"] = torch.full_like(a["A"], -1e-4)
    a["delta"] = torch.rand_like(a["delta"]) * 0.1
    both(ops.selective_scan, ops.selective_scan_ref, {**a, "delta_bias": None}, 2e-5)


# ------------------------------------------------------------------------------------------------------ numeric quality


def test_float32_is_as_good_as_the_reference(isa):
    a = scan_arguments(32, 200, 1, batch=4, dtype=F32, z=False)
    offset = torch.rand(4, 6, 20, 4) * 0.8 + 0.1
    sampling = {"input": torch.randn(4, 6, 20, 32), "offset": offset}
    for op, reference, tensors, options in (
        (ops.selective_scan, ops.selective_scan_ref, a, {"delta_softplus": True}),
        (ops.dcnv3, ops.dcnv3_ref, sampling, {"group": 2}),
    ):
        wide = {k: None if t is None else t.double() for k, t in tensors.items()}
        weight = torch.randn_like(reference(**wide, **options))
        exact = results(reference, wide, weight, **options)
        single = results(reference, tensors, weight.float(), **options)
        got = results(op, tensors, weight.float(), backend="native", **options)
        for i, (e, s, g) in enumerate(zip(exact, single, got)):
            e, s, g = e.detach(), s.detach(), g.detach()
            floor = 2**-23 * float(e.abs().max())
            assert float((g - e).abs().max()) <= 2 * float((s - e).abs().max()) + floor, i


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_half_results_are_rounded_once(dtype, isa):
    a = scan_arguments(32, 60, 1, dtype=dtype, z=False)
    wide = {k: None if t is None else t.double() for k, t in a.items()}
    exact = ops.selective_scan_ref(**wide, delta_softplus=True)
    got = ops.selective_scan(**a, delta_softplus=True, backend="native")
    assert got.dtype == dtype
    assert (got == exact.to(dtype)).double().mean() > 0.995  # the rest: float32 fell to the other side of a tie
    x, offset = torch.randn(2, 5, 7, 32, dtype=dtype), torch.randn(2, 5, 7, 4)
    exact = ops.dcnv3_ref(x.double(), offset.double(), group=2)
    assert (ops.dcnv3(x, offset, group=2, backend="native") == exact.to(dtype)).double().mean() > 0.995


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_conversions_keep_special_values(dtype, isa):
    """Zero offsets copy the map: every bit pattern must survive, NaN as NaN."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    values = bits.view(dtype) if dtype != F32 else torch.randn(65536)
    x = values.view(1, 64, 64, 16)
    out = ops.dcnv3(x, torch.zeros(1, 64, 64, 2), backend="native")
    # A neighbour with weight 0 that is infinite or NaN spoils its pixel, as in the reference; look at quiet places.
    fine = x.isfinite()
    quiet = fine & fine.roll(-1, 1) & fine.roll(-1, 2) & fine.roll((-1, -1), (1, 2))
    assert quiet.double().mean() > 0.9
    assert torch.equal(out[quiet], x[quiet])


# ------------------------------------------------------------------------------------------------------------ gradients


def check_gradients(function, tensors):
    leaves = {k: t.requires_grad_() for k, t in tensors.items() if t is not None}
    names = list(leaves)
    assert torch.autograd.gradcheck(lambda *t: function(**dict(zip(names, t))), list(leaves.values()))


@pytest.mark.parametrize("options", [(False, False, True), (True, True, True), (True, False, False)])
@pytest.mark.parametrize("n", [1, 3])
def test_scan_gradcheck(options, n):
    reverse, channels_last, softplus = options
    options = {"reverse": reverse, "channels_last": channels_last, "delta_softplus": softplus, "backend": "native"}
    tensors = scan_arguments(2, 5, n, batch=1, channels_last=channels_last)
    check_gradients(lambda **t: ops.selective_scan(**t, **options), tensors)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_dcnv3_gradcheck(kernel, masked):
    points = 2 * kernel * kernel
    tensors = {
        "input": torch.randn(1, 4, 5, 4, dtype=F64),
        "offset": torch.rand(1, 4, 5, points * 2, dtype=F64) * 0.9 + 0.05 + torch.randint(-2, 2, (points * 2,)),
        "mask": torch.rand(1, 4, 5, points, dtype=F64) if masked else None,
    }
    check_gradients(lambda **t: ops.dcnv3(**t, kernel_size=kernel, pad=kernel // 2, group=2, backend="native"), tensors)


@pytest.mark.parametrize("weighted", [False, True])
def test_deform_sample_gradcheck(weighted):
    cells = torch.randint(-1, 4, (1, 2, 3, 2, 2)) + torch.rand(1, 2, 3, 2, 2, dtype=F64) * 0.9 + 0.05
    tensors = {
        "value": torch.randn(1, 2, 3, 4, 4, dtype=F64),
        "loc": (cells + 0.5) / 4,
        "weight": torch.rand(1, 2, 3, 2, dtype=F64) if weighted else None,
    }
    check_gradients(lambda **t: ops.deform_sample(**t, backend="native"), tensors)


def test_second_derivatives_are_refused():
    x = torch.randn(1, 3, 4, 4, dtype=F64, requires_grad=True)
    out = ops.dcnv3(x, torch.rand(1, 3, 4, 2, dtype=F64), backend="native").square().sum()
    (grad,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()
    a = scan_arguments(2, 5, 1, batch=1)
    a["u"].requires_grad_()
    (grad,) = torch.autograd.grad(ops.selective_scan(**a, backend="native").square().sum(), a["u"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


def test_gradients_are_the_same_bits_in_every_run_and_on_any_number_of_threads():
    a = scan_arguments(70, 90, 2, batch=3, dtype=F32)
    offset = torch.randn(3, 6, 9, 12) * 3
    sampling = {"input": torch.randn(3, 6, 9, 48), "offset": offset}
    loc = {"value": torch.randn(3, 4, 5, 6, 6), "loc": torch.rand(3, 4, 30, 2, 2), "weight": torch.rand(3, 4, 30, 2)}

    def run():
        torch.manual_seed(3)
        return [
            *results(ops.selective_scan, a, delta_softplus=True, backend="native"),
            *results(ops.dcnv3, sampling, group=6, backend="native"),
            *results(ops.deform_sample, loc, backend="native"),
        ]

    first, threads = run(), torch.get_num_threads()
    try:
        for i in range(20):
            torch.set_num_threads(1 + i % 2)
            assert all(torch.equal(x, y) for x, y in zip(run(), first))
    finally:
        torch.set_num_threads(threads)


# -------------------------------------------------------------------------------------------------------------- PyTorch


def raw_calls():
    """Every raw operator with different options: (operator, arguments)."""
    o = torch.ops.openrec
    x, offset, mask = torch.randn(2, 4, 5, 8), torch.randn(2, 4, 5, 4), torch.rand(2, 4, 5, 2)
    geometry = ([1, 1], [1, 1], [0, 0], [1, 1], 2, 1.0, False)
    for m in (None, mask):
        yield o.dcnv3_forward, (x, offset, m, *geometry)
        yield o.dcnv3_backward, (torch.randn_like(x), x, offset, m, *geometry)
    big = ([3, 3], [2, 1], [1, 1], [1, 1], 2, 0.5, True)
    yield o.dcnv3_forward, (x.bfloat16(), torch.randn(2, 2, 5, 32), torch.rand(2, 2, 5, 16).bfloat16(), *big)
    yield o.dcnv3_forward, (x.permute(0, 2, 1, 3), offset.permute(0, 2, 1, 3), None, *geometry)
    value, loc, weight = torch.randn(2, 3, 4, 5, 6), torch.rand(2, 3, 7, 2, 2), torch.rand(2, 3, 7, 2)
    for w, shape in ((None, (2, 3, 4, 7, 2)), (weight, (2, 3, 4, 7))):
        yield o.deform_sample_forward, (value, loc, w)
        yield o.deform_sample_backward, (torch.randn(shape), value, loc, w)
    for last in (False, True):
        for channels_last in (False, True):
            for dtype in (F32, BF16):
                a = scan_arguments(6, 9, 2, 2, dtype=dtype, z=last, channels_last=channels_last)
                a["D"], a["delta_bias"] = (a["D"], None) if last else (None, a["delta_bias"])
                options = (True, last, channels_last)
                yield o.selective_scan_forward, (*a.values(), *options, last)
                grad_last = torch.randn(2, 6, 2) if last else None
                yield o.selective_scan_backward, (torch.randn_like(a["u"]), grad_last, *a.values(), *options)
    a = scan_arguments(6, 9, 2)
    a["u"] = torch.randn(2, 9, 6, dtype=F64).transpose(1, 2)
    yield o.selective_scan_forward, (*a.values(), False, False, False, True)


@pytest.mark.parametrize("index", range(len(list(raw_calls())) if native.library else 0))
@pytest.mark.filterwarnings("ignore")
def test_opcheck(index):
    operator, arguments = list(raw_calls())[index]
    forward = str(operator).endswith("forward")
    arguments = [
        a.requires_grad_() if forward and torch.is_tensor(a) and a.dtype in (F32, F64) else a
        for a in copy.deepcopy(arguments)
    ]
    checks = ["test_schema", "test_faketensor", "test_autograd_registration"]
    checks += ["test_aot_dispatch_dynamic"] if forward else []
    torch.library.opcheck(operator.default, tuple(arguments), test_utils=checks)


class Composition(torch.nn.Module):
    def forward(self, x, offset, A, B, D):
        sampled = ops.dcnv3(x, offset, group=2).flatten(1, 2)
        y = ops.selective_scan(sampled, sampled * 0.1, A, B, B, D, delta_softplus=True, channels_last=True)
        return y.unflatten(1, x.shape[1:3])


def composition_inputs(batch=2):
    x, offset = torch.randn(batch, 4, 5, 8), torch.randn(batch, 4, 5, 4)
    return x, offset, -torch.rand(8, 1) - 0.1, torch.randn(batch, 20, 1), torch.randn(8)


def test_compile_full_graph():
    model, inputs = Composition(), [t.requires_grad_() for t in composition_inputs()]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    want, got = model(*inputs), compiled(*inputs)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    pairs = zip(*(torch.autograd.grad(out.square().sum(), inputs) for out in (got, want)))
    assert all(torch.equal(a, b) for a, b in pairs)


def test_export_with_a_dynamic_batch(tmp_path):
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"x": {0: batch}, "offset": {0: batch}, "A": None, "B": {0: batch}, "D": None}
    program = torch.export.export(Composition(), composition_inputs(3), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()
    inputs = composition_inputs(7)
    torch.testing.assert_close(loaded(*inputs), Composition()(*inputs), rtol=0, atol=0)
    assert any("openrec" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_autocast_reads_mixed_types_and_computes_in_float32(dtype):
    a = scan_arguments(16, 30, 1, dtype=F32, z=False)
    a["u"], a["B"] = a["u"].to(dtype), a["B"].to(dtype)  # what autocast leaves of u and the projections
    wide = {k: None if t is None else t.double() for k, t in a.items()}
    with torch.autocast("cpu", dtype):
        got = ops.selective_scan(**a, delta_softplus=True, backend="native")
        x, offset = torch.randn(2, 4, 32, 32, dtype=dtype), torch.randn(2, 4, 32, 4) * 3
        sampled = ops.dcnv3(x, offset, group=2, backend="native")
    assert got.dtype == sampled.dtype == dtype
    assert_close([got], [ops.selective_scan_ref(**wide, delta_softplus=True)], 1e-2)
    assert_close([sampled], [ops.dcnv3_ref(x.double(), offset.double(), group=2)], 1e-2)


def test_gradients_have_the_types_of_their_inputs():
    a = scan_arguments(16, 30, 2, dtype=F32)
    a["u"], a["C"], a["z"] = a["u"].bfloat16(), a["C"].half(), a["z"].bfloat16()
    for t, grad in zip(a.values(), results(ops.selective_scan, a, backend="native")[1:]):
        assert grad.dtype == t.dtype


# ------------------------------------------------------------------------------------------------ sizes, loading, words


def test_empty_and_huge_batches():
    for batch in (0, 300, 384):
        x, offset = torch.randn(batch, 2, 3, 4), torch.rand(batch, 2, 3, 2)
        tensors = {"input": x, "offset": offset}
        out, d_x, d_offset = results(ops.dcnv3, tensors, backend="native")
        assert out.shape == d_x.shape == x.shape and d_offset.shape == offset.shape
        if batch:
            assert_close([out], [ops.dcnv3_ref(x.double(), offset.double())], 1e-5)
    a = scan_arguments(4, 5, 1, batch=0)
    out, *grads = results(ops.selective_scan, a, backend="native")
    assert out.shape == (0, 4, 5) and grads[2].eq(0).all()


def run_python(code, **environment):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, env=env)


def test_environment_forces_an_instruction_set():
    done = run_python("from openrec.ops._load import native; print(native.isa)", OPENREC_CPU_ISA="baseline")
    assert done.stdout.strip() == "baseline", done.stderr


def test_unknown_instruction_set_warns():
    done = run_python("from openrec.ops._load import native; print(native.isa)", OPENREC_CPU_ISA="avx9000")
    assert done.stdout.strip() == LEVELS[0] and "OPENREC_CPU_ISA=avx9000" in done.stderr


def test_environment_chooses_plain_pytorch():
    code = (
        "import torch; from openrec import ops; x = torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2, 2); ops.dcnv3(*x)\n"
        "print(ops.available()['native cpu'], hasattr(torch.ops.openrec, 'dcnv3_forward'))\n"
        "ops.dcnv3(*x, backend='native')"
    )
    done = run_python(code, OPENREC_OPS="reference")
    assert "OPENREC_OPS=reference" in done.stdout and "False" in done.stdout, done.stderr
    assert "openrec.ops runs" not in done.stderr
    assert "the compiled operators are not loaded: OPENREC_OPS=reference" in done.stderr


def test_raw_calls_with_wrong_sizes_are_refused():
    x, offset = torch.randn(1, 3, 4, 4), torch.zeros(1, 3, 4, 2)
    geometry = ([1, 1], [1, 1], [0, 0], [1, 1])
    for args in (
        (x, offset[:, :2], None, *geometry, 1, 1.0, False),
        (x, offset, None, *geometry, 3, 1.0, False),
        (x, offset, None, [1, 1], [0, 1], [0, 0], [1, 1], 1, 1.0, False),
        (x.int(), offset, None, *geometry, 1, 1.0, False),
    ):
        with pytest.raises(RuntimeError, match="dcnv3"):
            torch.ops.openrec.dcnv3_forward(*args)
    a = scan_arguments(4, 5, 1)
    for change in ({"B": a["B"][:, :, :, :3]}, {"delta": a["delta"][:, :2]}, {"D": a["D"][:2]}, {"A": a["A"][:2]}):
        with pytest.raises(RuntimeError, match="selective_scan"):
            torch.ops.openrec.selective_scan_forward(*{**a, **change}.values(), False, False, False, False)
    with pytest.raises(RuntimeError, match="deform_sample"):
        torch.ops.openrec.deform_sample_forward(torch.zeros(1, 2, 3, 4, 4), torch.zeros(1, 1, 5, 1, 2), None)
