"""The CUDA kernels on a GPU, and the models on them: numbers, streams, graphs, determinism, sizes. Skipped without one.

    python -m pytest tests/test_backend_parity.py                                     # all of it, one GPU
    compute-sanitizer --tool memcheck python -m pytest tests/test_backend_parity.py -k "references or broken"

The same cases run on the CPU, thread by thread, in test_cuda_emulated.py.
"""

import math

import pytest
import torch
from golden_check import call_dcnv3, call_scan, check_op, load_cases
from op_cases import ALL, BF16, F16, F32, F64, Dcn, Sample, Scan, compare

from openrec import ops
from openrec.modeling.encoders.svtrv2_mamba import SVTRv2Mamba
from openrec.ops._load import native


def why_not() -> str:
    if not torch.cuda.is_available():
        return "no CUDA GPU on this machine"
    return native.reasons.get("cuda", "")


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "usable")
GOLDEN = load_cases("index_encoders.json")


def on_gpu(tensors, device="cuda"):
    """To the device with the same strides: slices stay slices."""
    return {k: None if v is None else moved(v, device) for k, v in tensors.items()}


def moved(t, device):
    if t.is_contiguous():
        return t.to(device)
    flat = torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()).to(device)
    return flat.as_strided(t.shape, t.stride(), t.storage_offset())


def run(case, tensors):
    return case.run(torch.ops.openrec, tensors)


# Sizes that a GPU fills with work: full blocks, several waves of them, several chunks and segments.
LARGE = [
    *(Scan(d, batch=8, dim=192, length=n, channels_last=c, reverse=r) for d in (F32, BF16) for n in (256, 1000)
      for c in (False, True) for r in (False, True)),
    *(Scan(d, batch=4, dim=96, length=300, states=16, z=True, last_state=True, channels_last=c) for d in (F32, F16)
      for c in (False, True)),
    *(Dcn(d, batch=16, height=8, width=32, group=8) for d in (F32, F16, BF16)),
    *(Dcn(d, batch=4, height=16, width=40, group=4, kernel=(3, 3), pad=(1, 1), mask=True) for d in (F32, BF16)),
    Dcn(BF16, batch=3, height=64, width=200, group=2, reach=20.0), Dcn(F32, batch=300, height=4, width=8, channels=4),
    *(Sample(d, batch=4, heads=8, channels=16, height=8, width=64, queries=512, points=4) for d in (F32, BF16)),
]  # fmt: skip


@pytest.mark.parametrize("case", [*ALL, *LARGE], ids=lambda c: c.id)
def test_against_references(case):
    inputs = case.inputs()
    compare(case, run(case, on_gpu(inputs)), case.expected(inputs))


def golden(group):
    return [name for name in GOLDEN if name.split("/")[0] == group]


def call_on_gpu(function):
    def call(inputs, args):
        return {k: v.cpu() for k, v in function({k: v.cuda() for k, v in inputs.items()}, args).items()}

    return call


CALLS = {
    "dcnv3": call_dcnv3,
    "selective_scan": call_scan,
    "selective_scan_state": lambda i, a: {"h": ops.selective_scan_state(**i, **a)},
}


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("name", [n for group in CALLS for n in golden(group)])
def test_stored_numbers(name, dtype):
    check_op(GOLDEN[name], call_on_gpu(CALLS[name.split("/")[0]]), dtype)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -3e9])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_broken_positions_read_nothing_and_send_nothing_back(bad, dtype):
    case = Dcn(dtype, kernel=(3, 3), pad=(1, 1), mask=True)
    t = on_gpu(case.inputs())
    broken = torch.rand(t["offset"].shape, device="cuda") < 0.3
    got = run(case, {**t, "offset": t["offset"].masked_fill(broken, bad)})
    want = run(case, {**t, "offset": t["offset"].masked_fill(broken, 1e4)})
    for name in want:
        assert torch.equal(got[name], want[name]), name


def test_nan_stays_in_its_channel_and_after_its_step():
    t = on_gpu(Scan(F32, dim=64, length=300, channels_last=True).inputs())
    t["delta"][0, 100, 5] = math.nan
    out = run(Scan(F32, dim=64, length=300, channels_last=True), t)["out"]
    assert out[0, 100:, 5].isnan().all() and out[0, :100].isfinite().all() and out[1].isfinite().all()
    assert out[0, :, 6].isfinite().all()


SOME = [Dcn(F32), Dcn(BF16, group=4, height=8, width=32), Scan(BF16, dim=128, length=256, channels_last=True)]
SOME += [Scan(F32, dim=64, length=256), Scan(F16, dim=40, length=200, states=4, z=True), Sample(F32), Sample(BF16)]


@pytest.mark.parametrize("case", SOME, ids=lambda c: c.id)
def test_twenty_runs_give_the_same_bits(case):
    t = on_gpu(case.inputs())
    first = run(case, t)
    for _ in range(20):
        for name, value in run(case, t).items():
            assert torch.equal(value, first[name]), name


@pytest.mark.parametrize("case", SOME, ids=lambda c: c.id)
def test_runs_on_the_current_stream(case):
    """Inputs come from slow work on a side stream: a kernel on another stream would read them too early."""
    inputs = case.inputs()
    t = on_gpu(inputs)
    want = run(case, t)
    late = {k: None if v is None else torch.zeros_like(v) for k, v in t.items()}
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        for name, value in t.items():
            if value is not None:
                late[name].copy_(value)
        got = run(case, late)
    side.synchronize()
    for name in want:
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("case", SOME, ids=lambda c: c.id)
def test_is_captured_in_a_graph_and_replayed_with_new_data(case):
    t = on_gpu(case.inputs())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(case, t)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(case, t)
    name = next(k for k in ("input", "value", "u") if k in t)
    t[name].mul_(-0.5)
    graph.replay()
    torch.cuda.synchronize()
    for key, value in run(case, t).items():
        assert torch.equal(captured[key], value), key


@pytest.mark.parametrize("case", SOME, ids=lambda c: c.id)
def test_never_waits_for_the_gpu(case):
    t = on_gpu(case.inputs())
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(case, t)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU only")
@pytest.mark.parametrize("case", SOME, ids=lambda c: c.id)
def test_runs_where_its_tensors_are(case):
    inputs = case.inputs()
    second = run(case, on_gpu(inputs, "cuda:1"))
    assert torch.cuda.current_device() == 0
    compare(case, second, case.expected(inputs))
    assert all(v.device == torch.device("cuda:1") for v in second.values())


@pytest.mark.parametrize(
    "case", [Dcn(BF16), Scan(BF16, dim=64, length=64), Scan(F16, dim=64, length=64, channels_last=True)]
)
def test_misaligned_tensors(case):
    inputs = case.inputs()

    def shifted(x):
        return None if x is None else torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)

    compare(case, run(case, {k: shifted(v) for k, v in on_gpu(inputs).items()}), case.expected(inputs))


def test_more_maps_than_a_grid_axis_holds():
    for case in (
        Dcn(F32, batch=70_000, height=1, width=2, group=1, channels=4),
        Sample(F32, batch=70_000, heads=1, queries=2),
    ):
        t = on_gpu(case.inputs())
        got = run(case, t)
        tail = {k: None if v is None else v[65_500:] for k, v in t.items()}
        for name, value in run(case, tail).items():
            assert torch.equal(got[name][65_500:], value), name


def enough_memory(gigabytes):
    return torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > gigabytes * 2**30


@pytest.mark.skipif(not enough_memory(40), reason="needs 40 GB of GPU memory")
def test_more_than_two_to_the_31_elements():
    batch, tail = 40_000, 8
    case = Dcn(BF16, batch=tail, height=8, width=64, group=8)
    x = torch.randn(batch, 8, 64, 128, device="cuda", dtype=BF16)  # 2.6e9
    offset = torch.randn(batch, 8, 64, 16, device="cuda", dtype=BF16)
    args = ([1, 1], [1, 1], [0, 0], [1, 1], 8, 1.0, False)
    out = torch.ops.openrec.dcnv3_forward(x, offset, None, *args)
    d_x, d_offset, _ = torch.ops.openrec.dcnv3_backward(out, x, offset, None, *args)
    t = {"grad": out[-tail:].clone(), "input": x[-tail:].clone(), "offset": offset[-tail:].clone(), "mask": None}
    want = run(case, t)
    assert torch.equal(out[-tail:], want["out"])
    assert torch.equal(d_x[-tail:], want["d_input"]) and torch.equal(d_offset[-tail:], want["d_offset"])
    del d_x, d_offset, offset
    scan = Scan(BF16, batch=tail, dim=128, length=512, channels_last=True)
    u, delta = x.view(batch, 512, 128), out.view(batch, 512, 128)
    t = on_gpu(scan.inputs())
    maps = torch.randn(batch, 512, 1, 1, device="cuda", dtype=BF16)
    full = {**t, "grad": u, "u": u, "delta": delta, "B": maps, "C": maps}
    got = run(scan, full)
    small = {**full, **{k: full[k][-tail:].clone() for k in ("grad", "u", "delta", "B", "C")}}
    want = run(scan, small)
    for name in ("out", "d_u", "d_delta", "d_B", "d_C"):
        assert torch.equal(got[name][-tail:], want[name]), name


# ---------------------------------------------------------------------------------------------------- public functions


def test_gradcheck():
    def leaf(*shape):
        return torch.randn(shape, dtype=F64, device="cuda", requires_grad=True)

    offset = (torch.rand(2, 3, 4, 2 * 2, dtype=F64, device="cuda") * 0.8 + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, o: ops.dcnv3(x, o, group=2), (leaf(2, 3, 4, 6), offset))
    loc = (torch.rand(2, 2, 3, 2, 2, dtype=F64, device="cuda") * 0.1 + 0.43).requires_grad_()
    weight = leaf(2, 2, 3, 2)
    assert torch.autograd.gradcheck(ops.deform_sample, (leaf(2, 2, 3, 3, 4), loc, weight))
    A = (-torch.rand(4, 2, dtype=F64, device="cuda") - 0.1).requires_grad_()
    args = (leaf(2, 4, 9), leaf(2, 4, 9), A, leaf(2, 2, 9), leaf(2, 2, 9), leaf(4), leaf(2, 4, 9), leaf(4))
    assert torch.autograd.gradcheck(lambda *a: ops.selective_scan(*a, delta_softplus=True), args)


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_autocast_trains(dtype):
    x = torch.randn(2, 8, 32, 64, device="cuda", requires_grad=True)
    offset = torch.randn(2, 8, 32, 8, device="cuda", requires_grad=True)
    with torch.autocast("cuda", dtype):
        out = ops.dcnv3(x.to(dtype), offset, group=4)
        y = ops.selective_scan(
            out.view(2, 256, 64).transpose(1, 2), torch.rand(2, 64, 256, device="cuda", dtype=dtype),
            -torch.rand(64, 1, device="cuda"), *(torch.randn(2, 1, 256, device="cuda", dtype=dtype) for _ in "BC"),
        )  # fmt: skip
    y.float().square().mean().backward()
    assert x.grad.isfinite().all() and offset.grad.isfinite().all()


def test_compiles_to_one_graph():
    def block(x, offset, delta, A, B, C):
        sampled = ops.dcnv3(x, offset, group=4)
        return ops.selective_scan(sampled.flatten(1, 2).transpose(1, 2), delta, A, B, C, delta_softplus=True)

    x, offset = torch.randn(2, 4, 8, 64, device="cuda"), torch.randn(2, 4, 8, 8, device="cuda")
    args = (torch.randn(2, 64, 32, device="cuda"), -torch.rand(64, 1, device="cuda"))
    args += tuple(torch.randn(2, 1, 32, device="cuda") for _ in "BC")
    want = block(x, offset, *args)
    torch.testing.assert_close(torch.compile(block, fullgraph=True)(x, offset, *args), want)


def test_cpu_and_gpu_agree():
    for case in SOME:
        inputs = case.inputs()
        if "cpu" not in native.reasons:
            compare(case, run(case, on_gpu(inputs)), {k: v.double() for k, v in run(case, inputs).items()})


SYSTEMS = ("Mamba", "Mamba1D", "BiMamba1D", "DAT", "True2D", "FGlobalRe2D", "ReAttn")


def pass_of(model, x):
    """Output and gradients of an encoder, on the CPU."""
    model.zero_grad()
    out = model(x)
    out.square().mean().backward()
    return {"out": out.detach().cpu(), **{name: p.grad.cpu() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("mixer", SYSTEMS)
def test_encoders_agree_with_the_reference_on_the_cpu(mixer, monkeypatch, device="cuda"):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    options = {"dims": [32], "depths": [2], "num_heads": [2], "mixer": [[mixer] * 2], "sub_k": [[1, 1]]}
    model = SVTRv2Mamba(**options, max_sz=[16, 32], drop_path_rate=0.0, op_backend="reference")
    for name, parameter in model.named_parameters():
        if "offset" in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 3, 16, 32)
    want = pass_of(model, x)
    for module in model.modules():
        if hasattr(module, "op_backend"):
            module.op_backend = "auto"
    got = pass_of(model.to(device), x.to(device))
    for name, value in want.items():
        assert (got[name] - value).norm() <= 1e-3 * value.norm() + 1e-6, name


def test_tensors_on_different_devices_are_refused():
    x, offset = torch.randn(1, 2, 3, 16, device="cuda"), torch.randn(1, 2, 3, 2)
    with pytest.raises((ValueError, RuntimeError), match=r"device|cuda|cpu"):
        ops.dcnv3(x, offset)
