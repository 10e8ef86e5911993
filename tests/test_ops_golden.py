"""Short convolutions, multi-scale sampling and odd cases of the operators against stored numbers, on every backend."""

import pytest
import torch
from golden_check import check_op, load_cases

from openrec import ops
from openrec.ops._load import native

CASES = load_cases("index_ops.json")
DTYPES = [torch.float32, torch.float64]
BACKENDS = [b for b in ("native", "torch", "reference") if b != "native" or "cpu" not in native.reasons]


def ids(group):
    return [name for name in CASES if name.split("/")[0] == group]


def call_conv(i, a):
    out = ops.causal_conv1d(**i, **a)
    return {"out": out[0], "final_states": out[1]} if a["return_final_states"] else {"out": out}


def call_update(i, a):
    state = i["conv_state"].clone()
    out = ops.causal_conv1d_update(i["x"], state, i["weight"], i["bias"], **a)
    return {"out": out, "conv_state_after": state}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ids("causal_conv1d"))
def test_causal_conv1d(case, dtype):
    check_op(CASES[case], call_conv, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ids("causal_conv1d_update"))
def test_causal_conv1d_update(case, dtype):
    check_op(CASES[case], call_update, dtype)


def test_updates_continue_a_convolution():
    x, weight, bias = torch.randn(2, 3, 9), torch.randn(3, 4), torch.randn(3)
    want = ops.causal_conv1d(x, weight, bias, activation="silu")
    start, state = ops.causal_conv1d(x[..., :4], weight, bias, return_final_states=True, activation="silu")
    rest = [ops.causal_conv1d_update(x[..., t], state, weight, bias, "silu") for t in range(4, 9)]
    torch.testing.assert_close(torch.cat((start, torch.stack(rest, -1)), -1), want)


def test_convolution_refusals():
    x, weight = torch.zeros(2, 3, 9), torch.zeros(3, 4)
    with pytest.raises(ValueError, match="activation must be"):
        ops.causal_conv1d(x, weight, activation="relu")
    with pytest.raises(ValueError, match=r"weight must be \[D, width\]"):
        ops.causal_conv1d(x, weight[:2])
    with pytest.raises(ValueError, match="must hold 3 steps"):
        ops.causal_conv1d_update(x[..., 0], torch.zeros(2, 3, 2), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ids("ms_deform_attn"))
def test_ms_deform_attn(case, backend, dtype):
    def call(i, a):
        shapes = [tuple(s) for s in a["spatial_shapes"]]
        tensors = (i["sampling_locations"], i["attention_weights"])
        return {"out": ops.ms_deform_attn(i["value"], shapes, *tensors, backend=backend)}

    check_op(CASES[case], call, dtype)


def test_ms_deform_attn_refuses_sizes_that_do_not_fit():
    loc, weight = torch.zeros(1, 5, 2, 1, 3, 2), torch.zeros(1, 5, 2, 1, 3)
    with pytest.raises(ValueError, match="cover 12 positions, value holds 13"):
        ops.ms_deform_attn(torch.zeros(1, 13, 2, 4), [(3, 4)], loc, weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ids("dcnv3"))
def test_dcnv3_odd_groups(case, backend, dtype):
    def call(i, a):
        names = ("kernel_size", "stride", "pad", "dilation", "group", "offset_scale", "remove_center")
        return {"out": ops.dcnv3(i["input"], i["offset"], i["mask"], *[a[k] for k in names], backend=backend)}

    check_op(CASES[case], call, dtype)
