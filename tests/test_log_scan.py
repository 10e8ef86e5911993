"""The selective scan in a logarithmic number of steps."""

import pytest
import torch

from openrec.ops import dcnv3, selective_scan
from openrec.ops._load import choose, forced
from openrec.ops.log_scan import log_scan


@pytest.mark.parametrize("length", (1, 2, 15, 16, 17, 64, 257))
@pytest.mark.parametrize("states", (1, 4))
def test_equals_the_loop(length, states):
    torch.manual_seed(length)
    shape = (2, 6, length)
    u, delta, d = torch.randn(shape), torch.randn(shape), torch.randn(6)
    b, c = torch.randn(2, states, length), torch.randn(2, states, length)
    a = -torch.rand(6, states) * 3
    both = [
        selective_scan(u, delta, a, b, c, d, delta_softplus=True, return_last_state=True, backend=backend)
        for backend in ("parallel", "reference")
    ]
    for ours, theirs in zip(*both):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_decays_to_nothing_and_not_at_all():
    """Products of small decays underflow to 0, which is right; a decay of 1 sums everything."""
    x = torch.ones(1, 200, 3)
    torch.testing.assert_close(log_scan(torch.full_like(x, 1e-20), x), x)
    torch.testing.assert_close(log_scan(torch.ones_like(x), x)[0, :, 0], torch.arange(1.0, 201))


def test_forced_holds_whatever_a_caller_asks_for():
    with forced("parallel"):
        assert choose("dcnv3", "native", torch.device("cpu")) == "parallel"
        inside = dcnv3(torch.ones(1, 4, 4, 8), torch.zeros(1, 4, 4, 2), backend="native")
    assert choose("dcnv3", "reference", torch.device("cpu")) == "reference"
    torch.testing.assert_close(inside, torch.ones(1, 4, 4, 8))
