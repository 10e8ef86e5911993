"""STN: the grids of known warps, the start at identity, what learns, what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F

from openrec.errors import ConfigError
from openrec.modeling import build_model
from openrec.modeling.layers import init_svtr
from openrec.modeling.transforms import build_transform
from openrec.modeling.transforms.stn import STN, affine_grid, similarity
from openrec.modeling.transforms.thin_plate import pixel_centres

SMALL = {"channels": [4, 4, 4, 4, 4, 4], "hidden": 8}


def grid_of(theta, height, width):
    points = torch.from_numpy(pixel_centres(height, width))
    return affine_grid(torch.as_tensor(theta, dtype=torch.float64)[None], points, (height, width))


def warped(image, theta):
    return F.grid_sample(image, grid_of(theta, *image.shape[2:]), align_corners=False)


def image(height=8, width=32, channels=3):
    return torch.randn(1, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_the_grid_is_that_of_pytorch():
    theta = torch.randn(3, 2, 3, dtype=torch.float64)
    points = torch.from_numpy(pixel_centres(5, 9))
    torch.testing.assert_close(affine_grid(theta, points, (5, 9)), F.affine_grid(theta, [3, 1, 5, 9], False))


def test_identity_returns_the_image():
    torch.testing.assert_close(warped(image(), [[1, 0, 0], [0, 1, 0]]), image(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [-3, 1, 5])
def test_translation_moves_by_whole_pixels(k):
    x = image()
    moved = warped(x, [[1, 0, 2 * k / 32], [0, 1, 0]])  # the map goes from output to input
    torch.testing.assert_close(moved[..., 6:26], x[..., 6 + k : 26 + k], atol=1e-12, rtol=0)
    down = warped(x, [[1, 0, 0], [0, 1, 2 / 8]])
    torch.testing.assert_close(down[:, :, :7], x[:, :, 1:], atol=1e-12, rtol=0)


def test_quarter_turn_of_a_square():
    x = image(16, 16)
    turn = similarity(torch.tensor([[1.0, math.pi / 2, 0, 0]], dtype=torch.float64))[0]
    torch.testing.assert_close(warped(x, turn), torch.rot90(x, 1, (2, 3)), atol=1e-9, rtol=0)


def test_two_warps_are_the_warp_of_the_product():
    first, second = torch.randn(2, 2, 3, dtype=torch.float64)
    row = torch.tensor([[0.0, 0, 1]], dtype=torch.float64)
    product = (torch.cat([first, row]) @ torch.cat([second, row]))[:2]
    inner = grid_of(second, 4, 6).view(-1, 2)
    torch.testing.assert_close(affine_grid(first[None], inner, (4, 6)), grid_of(product, 4, 6))


@pytest.mark.parametrize("mode", ["affine", "similarity", "tps"])
@pytest.mark.parametrize("size", [(32, 128), (64, 256), (30, 75)])
def test_starts_as_a_resize(mode, size):
    torch.manual_seed(0)
    stn = STN(mode=mode, output_size=[32, 128], num_fiducial=6, **SMALL).eval().apply(init_svtr)
    x = torch.randn(2, 3, *size)
    want = F.interpolate(x, (32, 128), mode="bilinear", align_corners=False)
    torch.testing.assert_close(stn(x), want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("mode", ["affine", "similarity", "tps"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_last_layer_learns_from_zero(mode, batch):
    torch.manual_seed(0)
    stn = STN(mode=mode, num_fiducial=6, **SMALL).train()
    x = torch.randn(batch, 3, 32, 128)
    assert torch.equal(stn.stn_head(x[:, :, :, ::2]), stn.stn_head(-x[:, :, :, ::2]))  # not yet a matter of the image
    stn(x).square().mean().backward()
    last, first = stn.stn_head.stn_fc2, stn.stn_head.stn_convnet[0][0]
    assert last.weight.grad.abs().max() > 0 and last.bias.grad.abs().max() > 0
    assert first.weight.grad.abs().max() == 0  # through a zero weight; free after the first step
    assert torch.isfinite(last.weight.grad).all()


def test_frozen_steps_are_counted_and_saved():
    torch.manual_seed(0)
    stn = STN(freeze_steps=2, **SMALL).train()
    x, found = torch.randn(2, 3, 32, 128), []
    for _ in range(3):
        stn.zero_grad()
        stn(x).square().mean().backward()
        found.append(float(stn.stn_head.stn_fc2.weight.grad.abs().max()))
    assert found[:2] == [0, 0] and found[2] > 0
    assert stn.state_dict()["steps"] == 3
    stn.eval()(x)
    assert stn.steps == 3
    assert "steps" not in STN(**SMALL).state_dict() and "points" not in STN(**SMALL).state_dict()


def test_out_margin_shows_the_surroundings():
    stn = STN(out_margin=0.25, output_size=[32, 64], padding_mode="zeros", **SMALL).eval()
    out = stn(torch.ones(1, 3, 32, 64))
    assert (out[..., 9:23, 17:47] == 1).all() and out[..., :7, :].abs().max() == 0


def test_rare_start_is_rares_shear():
    """Mean 1/3 and largest vertical shift of RARE's figure 6a, nothing sideways: as ``TPS`` has it."""
    stn = STN(mode="tps", init="rare", output_size=[32, 100], **SMALL).eval()
    seen = []
    stn._listener = lambda module, key, value: seen.append(value) if key == "grid" else None
    stn(torch.zeros(1, 3, 32, 100))
    centres = torch.from_numpy(pixel_centres(32, 100)).float().view(32, 100, 2)
    shift = (2 * seen[0][0].detach() - 1 - centres).abs()
    assert abs(shift[..., 1].mean() - 1 / 3) < 2e-3 and abs(shift[..., 1].max() - 0.98) < 5e-3
    assert shift[..., 0].max() < 1e-5


@pytest.mark.parametrize("mode", ["affine", "similarity", "tps"])
def test_coordinates_of_a_model_in_other_precisions(mode):
    torch.manual_seed(0)
    grids = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        stn = STN(mode=mode, output_size=[32, 100], num_fiducial=6, **SMALL).eval().to(dtype)
        stn._listener = lambda module, key, value, d=dtype: grids.__setitem__(d, value) if key == "grid" else None
        assert stn(torch.zeros(1, 3, 32, 100, dtype=dtype)).dtype == dtype
    identity = torch.from_numpy((pixel_centres(32, 100).reshape(1, 32, 100, 2) + 1) / 2)
    assert grids[torch.bfloat16].dtype == torch.float32
    for dtype, atol in ((torch.float64, 1e-15 if mode != "tps" else 1e-7), (torch.float32, 1e-6)):
        torch.testing.assert_close(grids[dtype].double(), identity, atol=atol, rtol=0)
    torch.testing.assert_close(grids[torch.bfloat16].double(), identity, atol=5e-3, rtol=0)  # the parameters' rounding


def test_coordinates_stay_in_float32_under_autocast():
    torch.manual_seed(0)
    stn = STN(output_size=[32, 128], **SMALL).eval()
    with torch.no_grad():
        stn.stn_head.stn_fc2.bias.copy_(torch.tensor([0.901, 0.013, 0.117, -0.021, 0.877, 0.051]))
    seen = {}
    stn._listener = lambda module, key, value: seen.setdefault(key, value)
    x = torch.randn(2, 3, 64, 256)
    want = stn(x)
    exact = seen.pop("grid")
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        got = stn(x)
        half = stn(x.bfloat16())
    assert got.dtype == torch.float32 and half.dtype == torch.bfloat16
    assert seen["grid"].dtype == torch.float32 and seen["theta"].shape == (2, 2, 3)
    torch.testing.assert_close(seen["grid"], exact, atol=1e-6, rtol=0)
    torch.testing.assert_close(got, want, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"mode": "afine"}, "expected one of affine"),
        ({"init": "rare"}, "is a start of a spline"),
        ({"loc_size": [30, 64]}, r"multiples of 32.*Set it to \[32, 64\]"),
        ({"loc_size": [32, 32]}, "more than one cell"),
        ({"padding_mode": "wrap"}, "padding_mode: expected one of border"),
        ({"out_margin": 0.5}, "out_margin"),
        ({"channels": [4, 4]}, "expected six numbers"),
        ({"freeze_steps": -1}, "freeze_steps"),
        ({"output_size": [32]}, r"expected \[height, width\]"),
        ({"mode": "tps", "num_fiducial": 7}, "even number"),
    ],
)
def test_wrong_values_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        build_transform({"name": "STN", **wrong})


ENCODER = {
    "name": "SVTRv2Mamba", "dims": [16, 16, 32], "depths": [1, 1, 1], "num_heads": [1, 1, 1], "head_dim": 16,
    "mixer": ["Conv", "Conv", "Conv"], "feat2d": True, "use_pos_embed": True,
}  # fmt: skip
HEAD = {"name": "RCTCDecoder", "out_channels": 11}
TRANSFORM = {"name": "STN", "output_size": [32, 96], **SMALL}


def test_the_encoder_is_sized_by_the_transform():
    model = build_model({"Transform": TRANSFORM, "Encoder": ENCODER, "Decoder": HEAD}).eval()
    assert model(torch.randn(2, 3, 64, 256)).shape == (2, 24, 11)
    with pytest.raises(ConfigError, match=r"Set Encoder.max_sz: \[32, 96\]"):
        build_model({"Transform": TRANSFORM, "Encoder": {**ENCODER, "max_sz": [32, 64]}, "Decoder": HEAD})
