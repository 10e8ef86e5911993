"""The build's fallbacks, and the block that is made of the compiled operators."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from openrec.modeling.encoders.svtrv2_mamba import DASSMBlock
from openrec.ops._load import native

ROOT = Path(__file__).resolve().parents[1]
compiled = pytest.mark.skipif("cpu" in native.reasons, reason=f"not compiled: {native.reasons.get('cpu')}")


@compiled
@pytest.mark.parametrize("scan_order", ["row", "col"])
@pytest.mark.parametrize("d_state", [1, 2])
def test_block_on_kernels_equals_its_plain_composition(scan_order, d_state):
    results = []
    for backend in ("native", "reference"):
        torch.manual_seed(4)
        block = DASSMBlock(32, d_state=d_state, das_init="trunc_normal", scan_order=scan_order, op_backend=backend)
        block.double()
        torch.nn.init.normal_(block.token_mixer.da_scan.offset.weight, std=0.3)
        x = torch.randn(2, 32, 4, 9, dtype=torch.float64, requires_grad=True)
        out = block(x)
        grads = torch.autograd.grad(out.square().sum(), [x, *block.parameters()])
        results.append([out, *grads, *block.state_dict().values()])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def load_setup(monkeypatch, **environment):
    """setup.py as a module, without running setup()."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("setuptools.setup", lambda **kwargs: kwargs)
    monkeypatch.setattr(sys, "argv", ["setup.py"])
    spec = importlib.util.spec_from_file_location("openrec_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_build_without_compiler_or_torch_says_so(monkeypatch, capsys):
    setup = load_setup(monkeypatch, OPENREC_BUILD="none")
    assert setup.native == []
    monkeypatch.setenv("OPENREC_BUILD", "auto")
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    assert setup.extensions() == []
    assert "no C++ compiler was found" in capsys.readouterr().err
    monkeypatch.setattr(setup.PathFinder, "find_spec", lambda *a: None)
    assert setup.extensions() == []
    assert "torch is not installed where the build runs" in capsys.readouterr().err
    with pytest.raises(setup.Unavailable, match="nvcc was not found"):
        setup.find_nvcc()


def test_build_refuses_unknown_settings(monkeypatch):
    setup = load_setup(monkeypatch, OPENREC_BUILD="none")
    monkeypatch.setenv("OPENREC_CUDA_ARCHS", "8.0;hopper")
    with pytest.raises(SystemExit, match="hopper"):
        setup.cuda_archs()
    monkeypatch.setenv("OPENREC_CUDA_ARCHS", "8.0, 90a")
    assert setup.cuda_archs() == ["80", "90a"]
    monkeypatch.setenv("OPENREC_BUILD", "gpu")
    with pytest.raises(SystemExit, match="must be one of auto, cpu, cuda, none"):
        setup.extensions()
