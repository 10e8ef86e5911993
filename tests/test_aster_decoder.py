"""ASTER's decoder against stored reference numbers and digests of its weights' names."""

import hashlib

import pytest
import torch
from golden_check import check_module, load_cases

from openrec.errors import ConfigError
from openrec.modeling.decoders import build_decoder

CASES = load_cases("index_rnn.json")
FULL = {"name": "ASTERDecoder", "in_channels": 384, "out_channels": 97}
DIGESTS = {
    False: (15, "17af6203b9239a9de9f16fc9db2e8e4fbe83fcb5f328e0797c2d4293ba723306"),
    True: (17, "242e87b2e75e3a4990ae630aff68205e09a94664fc226473f9be5048cc3b95b3"),
}


def call(module, inputs, run):
    if run["mode"] == "eval":
        return {"out": module(inputs["x"])}
    out = module(inputs["x"], data=[inputs["label"], inputs["length"]])
    return {"out": out} if torch.is_tensor(out) else {f"out{i}": value for i, value in enumerate(out)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_reference(case, dtype):
    check_module(case, lambda: build_decoder({"name": "ASTERDecoder", **case["args"]}), dtype, call)


@pytest.mark.parametrize("seed", [False, True])
def test_weights_have_the_known_names_and_shapes(seed):
    state = build_decoder({**FULL, "seed": seed}).state_dict()
    shapes = [f"{k} {'x'.join(map(str, v.shape))}" for k, v in state.items()]
    count, digest = DIGESTS[seed]
    assert len(shapes) == count and hashlib.sha256("\n".join(shapes).encode()).hexdigest() == digest


@pytest.mark.parametrize("seed", [False, True])
def test_every_parameter_learns(seed):
    """OpenOCR's ``embed_fc`` is a parameter that nothing uses without ``seed``; DDP objects to those (T59)."""
    decoder = build_decoder(
        {"name": "ASTERDecoder", "in_channels": 8, "out_channels": 13, "seed": seed, "time_step": 5}
    )
    out = decoder.train()(
        torch.randn(2, 5, 8), data=[torch.tensor([[11, 1, 2, 0], [11, 3, 0, 12]]), torch.tensor([2, 1])]
    )
    (out[1] if seed else out).square().mean().backward()
    assert all(p.grad is not None for p in decoder.parameters())


def test_reads_every_text_as_if_alone():
    torch.manual_seed(0)
    decoder = (
        build_decoder({"name": "ASTERDecoder", "in_channels": 8, "out_channels": 13, "max_len": 5}).double().eval()
    )
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    heard = []
    decoder._listener = lambda module, key, tensor: heard.append((key, tensor))
    with torch.no_grad():
        together, alone = decoder(x), decoder(x[1:2])
    steps = min(together.shape[1], alone.shape[1])
    torch.testing.assert_close(together[1, :steps], alone[0, :steps])
    assert heard[0][0] == "attn" and heard[0][1].shape[::2] == (3, 7)


def test_a_sequence_of_another_length_is_refused_with_seed():
    decoder = build_decoder(
        {"name": "ASTERDecoder", "in_channels": 8, "out_channels": 13, "seed": True, "time_step": 5}
    )
    with pytest.raises(ConfigError, match=r"Set Decoder\.time_step: 7"):
        decoder.eval()(torch.randn(2, 7, 8))
