"""SVTRv2Mamba: mixers and ranks, sizes, names, what is decayed, and that it learns on CPU."""

import itertools
import logging

import pytest
import torch

from openrec import registry
from openrec.errors import ConfigError
from openrec.modeling.encoders import build_encoder
from openrec.modeling.encoders.svtrv2_mamba import (
    DASSMBlock,
    LayerNorm2d,
    SVTRv2Mamba,
)
from openrec.modeling.encoders.svtrv2_plan import MIXERS, make_plan

SMALL = {
    "dims": [32, 32, 64],
    "depths": [1, 2, 1],
    "num_heads": [2, 2, 2],
    "mixer": ["Conv", "Conv, Mamba", "Mamba"],
    "use_pos_embed": False,
}


def small(**options):
    return SVTRv2Mamba(**{**SMALL, **options})


@pytest.mark.parametrize(
    "options, count",
    [
        ({"mixer": ["Conv*6", "Conv*2, FGlobal, Global*3", "Global*6"]}, 6_755_360),
        ({}, 6_106_400),
        ({"final_norm": True}, 6_106_400 + 512),
        ({"mixer": ["Conv*6", "Conv*4, Mamba*2", "Mamba*6"]}, 6_197_376),
        ({"mixer": ["Conv*6", "Mamba*6", "Mamba*6"]}, 6_052_416),
        ({"mixer": ["Mamba*6", "Mamba*6", "Mamba*6"]}, 5_916_144),
        ({"dims": [128, 256, 384], "num_heads": [4, 8, 12]}, 15_892_576),
    ],
)
def test_parameter_count(options, count):
    with torch.device("meta"):
        model = SVTRv2Mamba(use_pos_embed=False, **options)
    assert sum(p.numel() for p in model.parameters()) == count


# ---------------------------------------------------------------------------- ranks

MAPS = [name for name, mixer in MIXERS.items() if mixer.in_rank == 4 and name != "FGlobal"]
ILLEGAL = {
    **{(a, "Global"): "use FGlobal for the first attention block" for a in MAPS},
    **{(a, "FGlobal"): "already flattened; use Global" for a in ("Global", "FGlobal")},
    **{(a, b): "use FGlobalRe2D there to keep 2-D" for a in ("Global", "FGlobal") for b in MAPS},
}


@pytest.mark.parametrize("across", [False, True], ids=["one stage", "across stages"])
@pytest.mark.parametrize("pair", list(itertools.product(MIXERS, MIXERS)), ids="-".join)
def test_every_pair_of_mixers_runs_or_names_the_repair(pair, across):
    options = {
        "mixer": [[pair[0]], [pair[1]]] if across else [list(pair)],
        "depths": [1, 1] if across else [2],
        "dims": [16, 16] if across else [16],
        "num_heads": [2, 2] if across else [2],
        "use_pos_embed": False,
    }
    if pair in ILLEGAL:
        with pytest.raises(ConfigError, match=ILLEGAL[pair]) as error:
            SVTRv2Mamba(**options)
        assert f'"{pair[1]}"' in str(error.value) and pair[0] in str(error.value)
        assert ("stage 1 block 0" if across else "stage 0 block 1") in str(error.value)
        return
    model = SVTRv2Mamba(**options).eval()
    out = model(torch.randn(2, 3, 16, 32))
    assert out.ndim == model.out_rank == MIXERS[pair[1]].out_rank


@pytest.mark.parametrize("name", ["Mambo", "Mamba2D", "conv", ""])
def test_unknown_mixers_are_refused_with_the_nearest(name):
    with pytest.raises(ConfigError, match=r"no mixer is called|is no mixer"):
        small(mixer=["Conv", ["Conv", name], "Mamba"])


@pytest.mark.parametrize(
    "written", ["Conv*2,Mamba", "Conv * 2, Mamba * 1", ["Conv", "Conv", "Mamba"], ["Conv*2", "Mamba"]]
)
def test_compact_mixer_strings(written):
    assert make_plan([written], [3]).mixers == [["Conv", "Conv", "Mamba"]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"head_dim": 24}, "not divisible by head_dim = 24"),
        ({"head_dim": 24}, "Choose a multiple; [0-9]+ is near, or another head_dim"),
        ({"mixer_cfg": {"Mamba": {"mamba_init": "foo"}}}, 'mamba_init must be "svtr" or "damamba", got "foo"'),
        ({"mixer_cfg": {"Mamba": {"layerscal": True}}}, 'Did you mean "layerscale"'),
        ({"mixer_cfg": {"Mmaba": {}}}, 'Did you mean "Mamba"'),
        ({"mixer_cfg": {"Conv": {"a": 1}}}, "takes none; only Mamba does"),
        ({"depths": [1, 2, 2]}, "names 1 blocks, but depths"),
        ({"heads_dim": 16}, 'Did you mean "head_dim"'),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        build_encoder({"name": "SVTRv2Mamba", **SMALL, **options})


def test_head_dim_matters_only_where_mamba_stands():
    small(dims=[24, 32, 64], head_dim=16)


# ---------------------------------------------------------------------------- outputs


@pytest.mark.parametrize(
    "options, shape",
    [
        ({}, (3, 64, 4, 24)),
        ({"feat2d": True}, (3, 64, 4, 24)),  # a map passes unchanged: nothing is scrambled
        ({"last_stage": True, "out_channels": 48}, (3, 24, 48)),
        ({"last_stage": True, "out_channels": 48, "feat2d": True}, (3, 48, 1, 24)),
        ({"mixer": ["Conv", "Mamba, FGlobal", "Global"]}, (3, 96, 64)),
        ({"mixer": ["Conv", "Mamba, FGlobal", "Global"], "feat2d": True}, (3, 64, 4, 24)),
        ({"mixer": ["Mamba", "FGlobalRe2D, Mamba", "FGlobal"], "last_stage": True}, (3, 24, 192)),
    ],
)
def test_shapes_and_batch_independence(options, shape):
    model = small(**options).eval()
    image = torch.randn(3, 3, 32, 96)
    out = model(image)
    assert out.shape == shape and out.ndim == model.out_rank
    torch.testing.assert_close(model(image.flip(0)), out.flip(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(30, 94), (35, 97)])
def test_sizes_not_divisible_by_four(size):
    h, w = (-(-n // 4) for n in size)
    assert small()(torch.randn(2, 3, *size)).shape == (2, 64, -(-h // 2), w)


@pytest.mark.parametrize("batch", [1, 257])
def test_batch_sizes(batch):
    model = small().eval()
    with torch.inference_mode():
        assert len(model(torch.randn(batch, 3, 16, 32))) == batch


def test_final_norm_closes_the_residual_stream():
    assert not hasattr(small(), "final_norm")  # the user's definition, literally
    model = small(final_norm=True)
    assert isinstance(model.final_norm, LayerNorm2d)
    out = model.eval()(torch.randn(2, 3, 32, 64))
    torch.testing.assert_close(out.mean(1), torch.zeros(2, 4, 16), atol=1e-5, rtol=0)
    assert not hasattr(small(final_norm=True, mixer=["Conv", "Mamba*2", "Conv"]), "final_norm")


def test_fmamba_is_mamba(caplog):
    registry._warned.discard(("Encoder.mixer", "FMamba"))
    models = []
    with caplog.at_level(logging.WARNING, "openrec"):
        for name in ("Mamba", "FMamba", "FMamba"):
            torch.manual_seed(3)
            models.append(small(mixer=["Conv", f"Conv, {name}", name]).eval())
    assert len([r for r in caplog.records if "FMamba" in r.message]) == 1
    a, b = models[:2]
    assert list(a.state_dict()) == list(b.state_dict())
    b.load_state_dict(a.state_dict())
    image = torch.randn(2, 3, 32, 64)
    assert torch.equal(a(image), b(image))


def test_options_reach_the_blocks():
    model = small(
        drop_rate=0.2, d_state=4, ssm_expand=2, dt_rank=3, scan_order="col", mixer_cfg={"Mamba": {"layerscale": True}}
    )
    blocks = [m for m in model.modules() if isinstance(m, DASSMBlock)]
    assert len(blocks) == 2
    for block in blocks:
        mixer = block.token_mixer
        assert block.mlp.drop.p == mixer.dropout.p == 0.2
        assert mixer.A_logs.shape == (2 * block.norm2.num_features, 4)
        assert mixer.rank == 3 and mixer.scan_order == "col" and block.layerscale
    assert model(torch.randn(1, 3, 32, 64)).shape == (1, 64, 4, 16)


def test_names_of_both_projects():
    names = {k for k in small().state_dict() if k.startswith("stages.1.blocks.1.")}
    assert {k.removeprefix("stages.1.blocks.1.") for k in names} == {
        *(f"pos_embed.conv.{p}" for p in ("weight", "bias")),
        *(f"norm1.norm.{p}" for p in ("weight", "bias")),
        *(f"token_mixer.{p}" for p in ("in_proj.weight", "conv2d.weight", "conv2d.bias", "out_proj.weight")),
        *(f"token_mixer.{p}" for p in ("x_proj_weight", "dt_projs_weight", "dt_projs_bias", "A_logs", "Ds")),
        *(f"token_mixer.da_scan.dw_conv.{p}" for p in ("0.weight", "0.bias", "1.1.weight", "1.1.bias")),
        *(f"token_mixer.da_scan.offset.{p}" for p in ("weight", "bias")),
        *(f"token_mixer.out_norm.norm.{p}" for p in ("weight", "bias")),
        *(f"norm2.{p}" for p in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
        *(f"mlp.{m}.{p}" for m in ("fc1", "fc2", "conv.conv") for p in ("weight", "bias")),
    }


def test_undecayed_parameters():
    """Beside 1-D tensors and biases exactly these are kept from weight decay."""
    model = small()
    listed = model.no_weight_decay()
    kept = {
        name
        for name, p in model.named_parameters()
        if p.ndim > 1
        and not name.endswith(".bias")
        and (any(n in name for n in listed) or getattr(p, "_no_weight_decay", False))
    }
    block = ("stages.1.blocks.1.", "stages.2.blocks.0.")
    assert kept == {
        "pope.patch_embed.0.conv.weight",
        "pope.patch_embed.1.conv.weight",
        "stages.0.downsample.conv.weight",
        "stages.1.downsample.conv.weight",
        *(b + "pos_embed.conv.weight" for b in block),
        *(b + "token_mixer.A_logs" for b in block),
    }
    flagged = {n for n, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)}
    assert flagged == {b + "token_mixer." + n for b in block for n in ("A_logs", "Ds", "dt_projs_bias")}


# ---------------------------------------------------------------------------- precision, training


def test_bfloat16_autocast_stays_close():
    model = small().eval()
    image = torch.randn(2, 3, 32, 64)
    want = model(image)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(image).float()
    assert (got - want).norm() / want.norm() < 2e-2


def test_bfloat16_autocast_trains():
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 32, 64)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_inference_and_training_paths_agree():
    model = small().eval()
    image = torch.randn(2, 3, 32, 64)
    with torch.inference_mode():
        fast = model(image)
    torch.testing.assert_close(model(image), fast, rtol=1e-4, atol=1e-4)


def test_backward_is_the_same_from_run_to_run():
    model = small(das_init="trunc_normal")
    image = torch.randn(16, 3, 32, 64)
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        model.zero_grad()
        model(image).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_it_learns():
    model = small(drop_path_rate=0.0, final_norm=True)
    head = torch.nn.Linear(64, 4)
    images, labels = torch.randn(8, 3, 16, 32), torch.arange(8) % 4
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=2e-3)
    losses = []
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(head(model(images).mean((2, 3))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
