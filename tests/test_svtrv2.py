"""SVTRv2's own encoder: names, sizes and numbers of the original, and its faults that must not return (T28, T29)."""

import hashlib

import numpy as np
import pytest
import torch
from golden_check import check_module, load_cases
from torch import nn

from openrec.errors import ConfigError
from openrec.modeling import build_model
from openrec.modeling.encoders import build_encoder
from openrec.modeling.encoders.svtrv2_lnconv_two33 import SVTRv2LNConvTwo33
from openrec.modeling.layers import dot_product_attention

CASES = load_cases("index_encoders.json")
STANDARD = {"mixer": [["Conv"] * 3, ["Conv"] * 2 + ["FGlobal"] + ["Global"] * 3, ["Global"] * 3]}
TINY = {"mixer": ["Conv*3", "Conv*3, FGlobal, Global*2", "Global*3"], "use_pos_embed": False}
BASE = {
    "dims": [128, 256, 384],
    "depths": [6, 6, 6],
    "num_heads": [4, 8, 12],
    "mixer": ["Conv*6", "Conv*2, FGlobal, Global*3", "Global*6"],
    "use_pos_embed": False,
}
SMALL = {
    "dims": [16, 16, 32],
    "depths": [1, 2, 1],
    "num_heads": [2, 2, 2],
    "mixer": ["Conv", "Conv, FGlobal", "Global"],
    "use_pos_embed": False,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case["target"] == "SVTRv2LNConvTwo33"])
def test_golden(case, dtype):
    case = CASES[case]
    check_module(case, lambda: build_encoder({"name": "SVTRv2LNConvTwo33", **case["args"]}), dtype)


def digest(module):
    lines = [f"{k} {'x'.join(map(str, v.shape)) or 'scalar'}" for k, v in module.state_dict().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    "options, want",
    [
        ({}, "e4cbf8a4b220b1a79b331dc40929b132b622e43a16fedbc51dcdcce2dde79d1d"),
        ({"use_pos_embed": True}, "a49fb2c4399752e5d81308422ce62c56a7519002dcdceb7bcd5876cc09c779a9"),
        ({"last_stage": True}, "899d08c9ab4b5f7c990d688f545412f2609673706f8a37d46826878a7b3d5b6f"),
        ({"pope_bias": True}, "798d3d9484a89861d9d0c4c4a1f04c649f0c1889fcdeb8ac0194cd8cf7771486"),
    ],
)
def test_state_dict_names_and_shapes(options, want):
    assert digest(SVTRv2LNConvTwo33(**STANDARD, **{"use_pos_embed": False, **options})) == want


@pytest.mark.parametrize(
    "options, count",
    [
        (TINY, 4_183_008),
        ({**TINY, "dims": [96, 192, 384], "num_heads": [3, 6, 12]}, 9_145_296),
        (BASE, 17_649_600),
        ({**BASE, "last_stage": True, "out_channels": 256}, 17_747_904),
    ],
)
def test_parameter_count(options, count):
    with torch.device("meta"):
        model = SVTRv2LNConvTwo33(**options)
    assert sum(p.numel() for p in model.parameters()) == count


# Values computed with the original code for weights and inputs that any program can make (float64).


def pseudo_random(count, stream):
    n = np.arange(count, dtype=np.uint64)
    mask = np.uint64(0xFFFFFFFF)
    v = (np.uint64(2654435761) * n + np.uint64(40503 * stream + 12345)) & mask
    v ^= v >> np.uint64(16)
    v = (np.uint64(73244475) * v) & mask
    v ^= v >> np.uint64(16)
    return torch.from_numpy(v.astype(np.float64) / 2**32)


def fill(module):
    for i, (name, entry) in enumerate(module.state_dict().items()):
        if entry.ndim == 0:
            entry.zero_()
            continue
        u = pseudo_random(entry.numel(), i).view(entry.shape)
        if entry.ndim == 1:
            entry.copy_(0.2 * (u - 0.5) + (1 if name.endswith(("weight", "running_var")) else 0))
        else:
            entry.copy_(2 * (u - 0.5) * (3 / np.prod(entry.shape[1:])) ** 0.5)
    return module


def test_pseudo_random_source():
    want = torch.tensor([0.52616898, 0.50667783, 0.36756463, 0.44919742, 0.56400391], dtype=torch.float64)
    torch.testing.assert_close(pseudo_random(5, 0), want, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "options, size, shape, statistics",
    [
        (TINY, (32, 128), (2, 256, 4, 32), (-0.00076860793, 1.0165602, 0.050109334, -0.73684102)),
        (TINY, (64, 64), (2, 256, 8, 16), (-0.0016993165, 1.0189627, 0.21479903, -1.0740154)),
        (BASE, (32, 128), (2, 384, 4, 32), (-0.00029358904, 1.0054736, -0.51900267, -2.3630419)),
        (
            {**BASE, "last_stage": True, "out_channels": 256},
            (32, 128),
            (2, 32, 256),
            (0.18852916, 0.59577346, 0.052368671, 0.023127724),
        ),
    ],
    ids=["tiny", "tiny 64x64", "base", "base last_stage"],
)
def test_forward_values_of_full_size_encoders(options, size, shape, statistics):
    # The weights' streams count the entries of the whole model; the encoder's come first.
    encoder = fill(SVTRv2LNConvTwo33(**options, feat2d="last_stage" not in options).double().eval())
    image = 2 * pseudo_random(2 * 3 * size[0] * size[1], 9999).view(2, 3, *size) - 1
    with torch.inference_mode():
        x = encoder(image)
    assert x.shape == shape
    got = (x.mean(), x.std(correction=0), x.flatten()[0] if x.ndim == 3 else x[0, 0, 0, 0], x.reshape(-1)[-1])
    torch.testing.assert_close(torch.stack(list(got)), torch.tensor(statistics).double(), rtol=1e-6, atol=1e-8)


# ---------------------------------------------------------------------------- behaviour


def small(**options):
    return SVTRv2LNConvTwo33(**{**SMALL, **options})


@pytest.mark.parametrize(
    "options, shape, rank",
    [
        ({}, (2, 128, 32), 3),
        ({"feat2d": True}, (2, 32, 4, 32), 4),
        ({"last_stage": True, "out_channels": 40}, (2, 32, 40), 3),
        ({"last_stage": True, "out_channels": 40, "feat2d": True}, (2, 40, 1, 32), 4),
        ({"mixer": ["Conv", "Conv*2", "Conv"]}, (2, 32, 4, 32), 4),
        ({"mixer": ["Conv", "Conv*2", "Conv"], "feat2d": True}, (2, 32, 4, 32), 4),
        ({"mixer": ["Conv", "Conv*2", "Conv"], "last_stage": True, "out_channels": 40}, (2, 32, 40), 3),
        ({"mixer": ["Global", "Global*2", "Global"], "feat2d": True}, (2, 32, 4, 32), 4),
        ({"mixer": ["FGlobal", "Global*2", "Global"]}, (2, 128, 32), 3),
        ({"mixer": ["FGlobalRe2D", "Conv, FGlobalRe2D", "FGlobal"]}, (2, 128, 32), 3),
    ],
)
def test_outputs_and_batch_independence(options, shape, rank):
    encoder = small(**options).eval()
    image = torch.randn(2, 3, 32, 128)
    out = encoder(image)
    assert out.shape == shape
    assert encoder.out_rank == rank == out.ndim
    assert encoder.out_channels == (shape[1] if rank == 4 else shape[2])
    torch.testing.assert_close(encoder(image.flip(0)), out.flip(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(30, 126), (34, 130), (33, 97)])
@pytest.mark.parametrize("first", ["Conv", "Global"])
def test_sizes_not_divisible_by_four(size, first):
    mixer = ["Conv", "Conv, FGlobal", "Global"] if first == "Conv" else ["Global", "Global*2", "Global"]
    out = small(mixer=mixer, feat2d=True)(torch.randn(1, 3, *size))
    h, w = (-(-n // 4) for n in size)
    assert out.shape == (1, 32, -(-h // 2), w)


def test_default_arguments_run():
    encoder = SVTRv2LNConvTwo33().eval()
    assert encoder(torch.randn(1, 3, 32, 64)).shape == (1, 64, 256)


def test_five_dimensional_input_is_a_batch_of_slices():
    encoder = small().eval()
    image = torch.randn(2, 3, 3, 32, 32)
    torch.testing.assert_close(encoder(image), encoder(image.flatten(0, 1)))


def test_dropout_reaches_the_blocks():
    encoder = small(drop_rate=0.25, attn_drop_rate=0.125, drop_path_rate=0.3)
    dropouts = {name: m.p for name, m in encoder.named_modules() if isinstance(m, nn.Dropout)}
    assert {p for name, p in dropouts.items() if name.endswith("mlp.drop")} == {0.25}
    assert {p for name, p in dropouts.items() if name.endswith("attn_drop")} == {0.125}
    rates = [getattr(b.drop_path, "p", 0.0) for s in encoder.stages for b in s.blocks if hasattr(b, "drop_path")]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_position_table_smaller_than_the_map_is_refused():
    with pytest.raises(ValueError, match=r"raise Encoder\.max_sz"):
        small(use_pos_embed=True, max_sz=[32, 64])(torch.randn(1, 3, 32, 128))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mixer": ["Cnov", "Conv, FGlobal", "Global"]}, 'no mixer is called "Cnov". Did you mean "Conv"'),
        ({"mixer": ["Conv", "Mamba, FGlobal", "Global"]}, 'no mixer is called "Mamba"'),
        ({"mixer": ["Conv", "Conv*3", "Global"]}, "names 3 blocks, but depths"),
        ({"mixer": ["Conv", "Conv, FGlobal"]}, "one list per stage"),
        ({"mixer": ["['Conv'] * 6", "Conv*2", "Conv"]}, "is no mixer"),
        ({"dims": [16, 16]}, "dims has 2 entries"),
        ({"num_heads": [3, 2, 2]}, "not divisible by num_heads = 3"),
        ({"num_convs": [[2], [2, 2]]}, "num_convs must hold one list per stage"),
        ({"mixr": [1]}, 'Did you mean "mixer"'),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        build_encoder({"name": "SVTRv2LNConvTwo33", **SMALL, **options})


def test_lists_of_another_length_fall_back_with_a_warning(caplog):
    encoder = small(depths=[2, 2, 1], mixer=["Conv*2", "Conv, FGlobal", "Global"], num_convs=[[1], [3, 3], [-1]])
    convs = [len(b.mixer) for b in list(encoder.stages[0].blocks) + [encoder.stages[1].blocks[0]]]
    assert convs == [2, 2, 3]
    assert "num_convs[0]" in caplog.text and "num_convs[2]" not in caplog.text


def test_keys_that_openocr_ignores_are_accepted():
    build_encoder({"name": "SVTRv2LNConvTwo33", **SMALL, "local_k": [[5, 5], [5, 5], [-1, -1]]})


def test_no_weight_decay_names():
    assert small().no_weight_decay() == {"patch_embed", "downsample", "pos_embed"}


def test_bfloat16_autocast_stays_close():
    encoder = small().eval()
    image = torch.randn(2, 3, 32, 64)
    want = encoder(image)
    with torch.autocast("cpu", torch.bfloat16):
        got = encoder(image).float()
    assert (got - want).norm() / want.norm() < 2e-2


def test_training_and_inference_paths_agree():
    """Folded norms and the inference products are the same function."""
    encoder = small().eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)
    image = torch.randn(2, 3, 32, 64)
    with torch.inference_mode():
        fast = encoder(image)
    torch.testing.assert_close(encoder(image), fast, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder.double()(image.double()).float(), fast, rtol=1e-4, atol=1e-5)


def test_recogniser_golden():
    pytest.importorskip("openrec.losses")
    from openrec.losses import build_loss

    case = CASES["recognizer/svtrv2_rctc"]

    def call(model, inputs, run):
        if run["mode"] == "eval":
            return {"out": model(inputs["image"])}
        batch = [inputs["image"], *(v for k, v in inputs.items() if k != "image")]
        prediction = model(batch[0], data=batch[1:])
        return {"loss": build_loss(case["args"]["Loss"])(prediction, batch)["loss"], "pred": prediction}

    check_module(case, lambda: build_model(case["args"]["Architecture"]), torch.float64, call)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_attention_in_half_precision_is_computed_in_full(dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.randn(5, 5, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = dot_product_attention(q, k, v, mask)
    exact = ((q.double() @ k.double().mT / 8**0.5 + mask.double()).softmax(-1) @ v.double()).detach()
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)
    out.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == dtype for t in (q, k, v))
