"""The CUDA kernels, compiled for the CPU and run thread by thread (tests/cuda_emulator).

This is what can be tested without a GPU: the numbers come from the kernels' own source, through the same host code that
a GPU runs. Not tested here: what nvcc makes of it, streams, devices (test_backend_parity.py), speed.
"""

import ctypes
import math
import random

import cuda_emulated
import pytest
import torch
from op_cases import ALL, BF16, F16, F32, F64, Dcn, Sample, Scan, compare

from openrec.ops import selective_scan_ref

pytestmark = pytest.mark.skipif(bool(cuda_emulated.why_not()), reason=cuda_emulated.why_not() or "can be built")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return cuda_emulated.load(tmp_path_factory.getbasetemp().parent)


@pytest.fixture(scope="module")
def ops(built):
    return built[0]


@pytest.fixture(scope="module")
def probe(built):
    return built[1]


def bits(results):
    return {k: v.contiguous().view(torch.uint8) for k, v in results.items() if v.numel()}


# Longer sequences than fit one block's chunk, more samples than one segment holds: loops that small cases do not enter.
LARGER = [
    Scan(F32, length=600, dim=5, channels_last=True, last_state=True),
    Scan(BF16, length=328, dim=66, channels_last=True),
    Scan(BF16, length=520, dim=40, reverse=True),
    Scan(F16, length=130, states=5, groups=2, z=True, last_state=True),
    Dcn(F32, kernel=(3, 3), pad=(1, 1), height=12, width=24, group=1, batch=1, mask=True),
    Dcn(F16, kernel=(3, 3), pad=(1, 1), height=10, width=16, group=2, channels=8, batch=1, mask=True),
    Dcn(F32, height=70, width=100, group=1, channels=4, batch=1, reach=30.0),
    Sample(F16, queries=500, height=80, width=90),
]


@pytest.mark.parametrize("case", [*ALL, *LARGER], ids=lambda c: c.id)
def test_kernels_against_references_in_any_order_of_threads(case, ops, monkeypatch):
    inputs = case.inputs()
    monkeypatch.setenv("OPENREC_EMULATOR_ORDER", "0")
    first = case.run(ops, inputs)
    compare(case, first, case.expected(inputs))
    for order in ("1", str(random.randint(2, 10**6))):  # a missing barrier, or sums in order of arrival, would show
        monkeypatch.setenv("OPENREC_EMULATOR_ORDER", order)
        again = bits(case.run(ops, inputs))
        for name, value in bits(first).items():
            assert torch.equal(value, again[name]), f"{name} depends on the order of threads ({order})"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -3e9])
def test_broken_positions_read_nothing_and_send_nothing_back(bad, ops):
    case = Dcn(F32, kernel=(3, 3), pad=(1, 1), mask=True)
    t = case.inputs()
    broken = torch.rand(t["offset"].shape) < 0.3
    inside = {**t, "offset": torch.where(broken, torch.tensor(1e4), t["offset"])}
    got = case.run(ops, {**t, "offset": torch.where(broken, torch.tensor(bad), t["offset"])})
    want = case.run(ops, inside)  # far outside: the same zeros
    for name in want:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize(
    "case", [Dcn(BF16), Scan(BF16, dim=64, length=64), Scan(F16, dim=64, length=64, channels_last=True)]
)
def test_misaligned_tensors_take_the_general_kernels(case, ops):
    t = case.inputs()

    def shifted(x):  # one element off the allocation's alignment
        return None if x is None else torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)

    compare(case, case.run(ops, {k: shifted(v) for k, v in t.items()}), case.expected(t))


@pytest.mark.slow
def test_more_maps_than_a_grid_axis_holds(ops):
    t = Dcn(F32, batch=65_600, height=1, width=2, group=1, channels=4).inputs()
    args = (None, [1, 1], [1, 1], [0, 0], [1, 1], 1, 1.0, False)
    all_maps = ops.dcnv3_forward(t["input"], t["offset"], *args)
    last_maps = ops.dcnv3_forward(t["input"][65_530:], t["offset"][65_530:], *args)
    assert torch.equal(all_maps[65_530:], last_maps)


def test_mixed_storage_types_of_a_scan(ops):
    case = Scan(BF16, channels_last=True, dim=6, length=20)
    t = case.inputs()
    mixed = {**t, "delta": t["delta"].float(), "B": t["B"].float()}
    got = case.run(ops, mixed)
    compare(case, got, case.expected(mixed))
    assert got["d_u"].dtype == BF16 and got["d_delta"].dtype == F32 and got["d_B"].dtype == F32


def test_float32_scan_is_as_exact_as_the_reference(ops):
    """Long memory, small steps: errors of e^x would add up over a thousand steps. Over many channels: one is luck."""
    case = Scan(F32, length=1024, dim=32, batch=1, size=0.2, D=False)
    t = case.inputs()
    t["A"] = t["A"] * 0.01
    t["bias"] = torch.full_like(t["bias"], -4.0)

    def reference(t):
        return selective_scan_ref(t["u"], t["delta"], t["A"], t["B"], t["C"], delta_bias=t["bias"], delta_softplus=True)

    exact = reference({k: v.double() for k, v in t.items() if v is not None})
    ours = (case.run(ops, t)["out"] - exact).square().mean().sqrt()
    theirs = (reference(t) - exact).square().mean().sqrt()
    assert ours <= 2 * theirs, f"{float(ours):.2e} against the reference's {float(theirs):.2e}"


def test_wrong_shapes_are_refused(ops):
    t = Dcn(F32).inputs()
    args = ([1, 1], [1, 1], [0, 0], [1, 1], 2, 1.0, False)
    with pytest.raises(RuntimeError, match="offset has an unexpected shape"):
        ops.dcnv3_forward(t["input"], t["offset"][:, 1:], None, *args)
    with pytest.raises(RuntimeError, match="divisible by group"):
        ops.dcnv3_forward(t["input"][..., 1:], t["offset"], None, *args)
    with pytest.raises(RuntimeError, match="expected float32"):
        ops.dcnv3_forward(t["input"].int(), t["offset"], None, *args)


# ---------------------------------------------------------------------------------------------------- single functions


def test_division_by_multiplication(probe):
    probe.probe_quotient.restype = ctypes.c_uint32
    edges = [1, 2, 3, 5, 7, 31, 32, 33, 640, 641, 65535, 65536, 65537, 2**30, 2**31 - 1]
    random.seed(3)
    for d in edges + [random.randint(1, 2**31 - 1) for _ in range(200)]:
        numbers = [0, 1, d - 1, d, d + 1, 2 * d - 1, 2**31 - 1, *(random.randint(0, 2**31 - 1) for _ in range(30))]
        for n in (n for n in numbers if 0 <= n < 2**31):
            assert probe.probe_quotient(n, d) == n // d, (n, d)


def test_addresses_beyond_32_bits(probe):
    for name in ("probe_packed_offset", "probe_planar_offset", "probe_sample_number"):
        getattr(probe, name).restype = ctypes.c_int64
    i64 = ctypes.c_int64
    b, g, groups, width, pixels, pixel = 70_000, 5, 6, 64, 40_000, 39_999
    got = probe.probe_packed_offset(i64(b), g, 3, groups, width, pixels, pixel)
    assert got == (b * pixels + pixel) * groups * width + g * width + 3 * 8
    got = probe.probe_planar_offset(i64(b), g, 3, groups, width, pixels, pixel)
    assert got == ((b * groups + g) * width + 3 * 4) * pixels + pixel
    # one map alone with more than 2^31 elements
    got = probe.probe_packed_offset(i64(0), 0, 0, 64, 64, 2**20, 2**20 - 1)
    assert got == (2**20 - 1) * 4096
    assert (
        probe.probe_sample_number(i64(b), g, 99_999, 8, groups, 100_000, 9, 0)
        == ((b * 100_000 + 99_999) * 6 + g) * 9 + 8
    )
    assert (
        probe.probe_sample_number(i64(b), g, 99_999, 8, groups, 100_000, 9, 1)
        == ((b * 6 + g) * 100_000 + 99_999) * 9 + 8
    )


@pytest.mark.parametrize(
    "rows,cols", [(1, 1), (8, 32), (4, 64), (1, 4000), (4000, 1), (64, 64), (200, 300), (3, 20_000)]
)
@pytest.mark.parametrize("points", [1, 9])
def test_tiles_cover_the_map_and_fit_shared_memory(rows, cols, points, probe):
    out = (ctypes.c_int32 * 6)()
    probe.probe_plan(8, 16, rows, cols, rows * cols, points, out)
    block_groups, tile_rows, tile_cols, tiles, segments, cells = out
    assert math.ceil(rows / tile_rows) * math.ceil(cols / tile_cols) == tiles
    assert cells <= 6144 and segments * 1024 >= rows * cols * points * block_groups
    assert segments == 1 or block_groups == 1


def floats(t):
    return ctypes.cast(t.data_ptr(), ctypes.POINTER(ctypes.c_float))


def test_exponential(probe):
    x = torch.cat((torch.linspace(-87, 88, 400_001), torch.linspace(-1e-3, 1e-3, 1001)))
    y = torch.empty_like(x)
    probe.probe_exp(floats(x), floats(y), ctypes.c_int64(x.numel()))
    exact = x.double().exp()
    assert float(((y.double() - exact) / exact).abs().max()) < 1.5e-7
    special = torch.tensor([math.nan, -math.inf, math.inf, -1e30, 1e30, 0.0, -88.0])
    y = torch.empty_like(special)
    probe.probe_exp(floats(special), floats(y), ctypes.c_int64(7))
    assert y[0].isnan() and y[1:].tolist() == [0.0, math.inf, 0.0, math.inf, 1.0, 0.0]


@pytest.mark.parametrize("kind,bound", [(0, 3e-7), (1, 1e-5)])
def test_softplus_and_its_slope(kind, bound, probe):
    x = torch.cat((torch.linspace(-40, 40, 200_001), torch.tensor([-100.0, -20.0, -7.0, 0.0, 20.0, 100.0])))
    value, slope = torch.empty_like(x), torch.empty_like(x)
    probe.probe_softplus(floats(x), floats(value), floats(slope), ctypes.c_int64(x.numel()), kind)
    exact = torch.nn.functional.softplus(x.double(), threshold=1000)
    assert float(((value.double() - exact) / exact).abs()[exact > 1e-37].max()) < bound
    exact = x.double().sigmoid()
    assert float(((slope.double() - exact) / exact).abs()[exact > 1e-37].max()) < bound
    x = torch.tensor([math.nan, math.inf, -math.inf])
    probe.probe_softplus(floats(x), floats(value), floats(slope), ctypes.c_int64(3), kind)
    assert value[0].isnan() and value[1:3].tolist() == [math.inf, 0.0] and slope[1:3].tolist() == [1.0, 0.0]


def test_rounding_to_bfloat16(probe):
    x = torch.cat(
        (torch.randn(100_000) * torch.logspace(-38, 38, 100_000), torch.tensor([math.inf, -math.inf, 0.0, -0.0]))
    )
    y = torch.empty(x.shape, dtype=torch.int16)
    probe.probe_to_bfloat16(
        floats(x), ctypes.cast(y.data_ptr(), ctypes.POINTER(ctypes.c_uint16)), ctypes.c_int64(x.numel())
    )
    assert torch.equal(y, x.to(torch.bfloat16).view(torch.int16))
    nan, y = torch.tensor([math.nan]), torch.empty(1, dtype=torch.int16)
    probe.probe_to_bfloat16(floats(nan), ctypes.cast(y.data_ptr(), ctypes.POINTER(ctypes.c_uint16)), ctypes.c_int64(1))
    assert y.view(torch.bfloat16).isnan().item()


def test_gradients_by_finite_differences(ops):
    """float64, every differentiable input, the emulated forward pass alone against the emulated backward pass."""
    torch.manual_seed(5)
    cases = (
        Scan(F64, states=2, z=True, dim=3, length=4, last_state=True),
        Dcn(F64, kernel=(2, 2), mask=True, channels=2),
        Sample(F64),
    )
    for case in cases:
        t = case.inputs()
        got = case.run(ops, t)
        names = [n for n in t if f"d_{n}" in got]
        for name in names:
            direction = torch.randn_like(t[name])
            direction = direction / direction.norm()
            eps = 1e-6
            ends = []
            for sign in (1, -1):
                moved = case.run(ops, {**t, name: t[name] + sign * eps * direction})
                loss = (moved["out"] * t["grad"]).sum()
                if t.get("grad_last") is not None:
                    loss = loss + (moved["last_state"] * t["grad_last"]).sum()
                ends.append(loss)
            numeric, ours = (ends[0] - ends[1]) / (2 * eps), (got[f"d_{name}"] * direction).sum()
            assert torch.isclose(numeric, ours, rtol=1e-5, atol=1e-7), (case.id, name, numeric, ours)
