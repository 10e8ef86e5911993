"""TPS and Aster_TPS: reference numbers, the spline's own laws, the start, what learns, what is refused."""

import numpy as np
import pytest
import reference_numbers as numbers
import torch
import torch.nn.functional as F
from golden_check import check_module, load_cases

from openrec.errors import ConfigError
from openrec.modeling.layers import init_svtr
from openrec.modeling.transforms import build_transform
from openrec.modeling.transforms.aster_tps import TPSSpatialTransformer
from openrec.modeling.transforms.thin_plate import ThinPlate, edge_points, first_points, pixel_centres, spline_matrix
from openrec.modeling.transforms.tps import TPS

CASES = load_cases("index_transforms.json")
SMALL = {"channels": [4, 4, 4, 4, 4, 4], "hidden": 8}
ASTER = {"name": "Aster_TPS", "tps_inputsize": [32, 64], "tps_outputsize": [32, 128]}
SIZE = (32, 128)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_reference_numbers(case, dtype):
    if case["target"] == "TPSSpatialTransformer":
        check_module(case, lambda: TPSSpatialTransformer(**case["args"]), dtype)
    else:
        check_module(case, lambda: build_transform({"name": case["target"], **case["args"]}), dtype)


def test_aster_tables_are_those_of_the_reference():
    case = CASES["aster_tps/spatial_transformer"]
    arrays = np.load(__file__.replace("test_tps.py", f"golden/{case['file']}"))
    for name, table in TPSSpatialTransformer(**case["args"]).state_dict().items():
        np.testing.assert_allclose(table.numpy(), arrays[f"sd.{name}"], atol=1e-3, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "config, size, digest, found",
    [
        ({"name": "TPS", "num_fiducial": 20, "loc_lr": 0.1, "model_name": "small"}, (32, 100),
         "15d6eb3e2a39ce436b8ca20d11aa713c768794a0403d3b0fe25a2b3db210f7af",
         (0.0017135457, 0.47054444, 0.11572482, -0.31112331)),
        ({"name": "TPS", "num_fiducial": 20, "loc_lr": 0.1, "model_name": "large"}, (32, 100),
         "572a2bc0a5a7ceaa8aebf7ca81d4230a33b10335f0c52b4401807a760346fa76", None),
        (ASTER, (64, 256), "eb5fce4a2ffb4b5aa6ff03960f7c278d7be966c3fa07cf6d628afe368aecec1d",
         (-0.0022116262, 0.35439041, -0.2405863, 0.2011051)),
    ],
    ids=["small", "large", "aster"],
)  # fmt: skip
def test_names_and_first_output_are_openocrs(config, size, digest, found):
    transform = build_transform(config, in_channels=3).eval()
    assert numbers.digest(transform) == digest
    if found:
        out = transform(numbers.tensor(2, 3, *size, stream=9999).float())
        assert numbers.statistics(out) == pytest.approx(found, abs=1e-4)  # the tables there were solved in float32


def grid_of(source, margin=0.05, size=SIZE):
    spline = ThinPlate(len(source), margin, size)
    return spline(torch.as_tensor(source)[None])[0].view(-1, 2)


@pytest.mark.parametrize("margin", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("count", [4, 8, 20])
def test_unmoved_points_give_the_identity(count, margin):
    points = edge_points(count, margin)
    want = torch.from_numpy(pixel_centres(*SIZE))
    assert (grid_of(points, margin) - want).abs().max() < 1e-12
    pixels = torch.tensor([SIZE[1] / 2, SIZE[0] / 2])
    exact = ThinPlate(count, margin, SIZE)(torch.from_numpy(points).float()[None])[0].view(-1, 2)
    assert ((exact - want) * pixels).abs().max() < 1e-4


def test_the_matrix_reproduces_identity_by_itself():
    points, control = pixel_centres(*SIZE), edge_points(20, 0.05)
    matrix = spline_matrix(points, control)
    assert np.abs(matrix[:, :20] @ control - points).max() < 1e-12
    single = matrix.astype(np.float32)[:, :20] @ control.astype(np.float32)
    assert np.abs((single - points) * [64, 16]).max() < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_affine_maps_are_reproduced(seed):
    matrix, shift = np.random.default_rng(seed).standard_normal((2, 2)), np.array([0.3, -0.2])
    want = pixel_centres(*SIZE) @ matrix.T + shift
    assert np.abs(grid_of(edge_points(8, 0.05) @ matrix.T + shift).numpy() - want).max() < 1e-11


def moved(count=8, margin=0.05):
    return edge_points(count, margin) + 0.2 * np.random.default_rng(0).standard_normal((count, 2))


def test_the_spline_passes_through_its_points():
    control, source = edge_points(8, 0.05), moved()
    assert np.abs(spline_matrix(control, control)[:, :8] @ source - source).max() < 1e-12


def test_the_spline_is_scipys():
    interpolate = pytest.importorskip("scipy.interpolate")
    control, source, points = edge_points(8, 0.05), moved(), pixel_centres(8, 20)
    want = interpolate.RBFInterpolator(control, source, kernel="thin_plate_spline", degree=1)(points)
    assert np.abs(grid_of(source, size=(8, 20)).numpy() - want).max() < 1e-10


def test_it_bends_least():
    """Without scipy: the same spline from the variational conditions, written out by hand for four points."""
    control, source = edge_points(4, 0.1), moved(4, 0.1)
    distance = np.linalg.norm(control[:, None] - control[None], axis=-1) + np.eye(4)
    u = distance**2 * np.log(distance)
    plane = np.c_[np.ones(4), control]
    weights = np.linalg.solve(np.block([[u, plane], [plane.T, np.zeros((3, 3))]]), np.r_[source, np.zeros((3, 2))])
    p = np.array([0.123, -0.4])
    r = np.linalg.norm(p - control, axis=1)
    want = (r**2 * np.log(r)) @ weights[:4] + np.array([1, *p]) @ weights[4:]
    assert np.abs(spline_matrix(p[None], control)[0, :4] @ source - want).max() < 1e-12


def test_float32_stays_within_a_ten_thousandth_of_a_pixel():
    source = torch.from_numpy(moved(20))
    single = ThinPlate(20, 0.05, SIZE)(source.float()[None])[0].view(-1, 2)
    assert ((single - grid_of(moved(20))) * torch.tensor([64, 16])).abs().max() < 1e-4


def test_gradient_of_the_points():
    spline = ThinPlate(6, 0.05, (4, 5))
    source = torch.from_numpy(moved(6))[None].requires_grad_()
    assert torch.autograd.gradcheck(spline, (source,))
    tps = TPS(num_fiducial=6, output_size=[4, 5], **SMALL)
    x = torch.randn(1, 1, 6, 9, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: tps.sample(x, spline(s)), (0.7 * source.detach()).requires_grad_())


def test_starts():
    assert np.array_equal(first_points(20, "identity", 0.05), edge_points(20, 0.05))
    zoomed = grid_of(first_points(20, "aster", 0.05)).numpy()
    assert np.abs(zoomed / pixel_centres(*SIZE) - 0.98 / 0.9).max() < 1e-9  # 1.089
    shear = grid_of(first_points(20, "rare", 0.0), 0.0).numpy() - pixel_centres(*SIZE)
    assert abs(np.abs(shear[:, 1]).mean() - 0.33) < 0.01 and abs(np.abs(shear[:, 1]).max() - 0.98) < 0.01


@pytest.mark.parametrize("size", [(32, 128), (64, 256), (30, 75)])
def test_starts_as_a_resize(size):
    torch.manual_seed(0)
    tps = TPS(output_size=[32, 128], num_fiducial=8, **SMALL).eval().apply(init_svtr)
    x = torch.randn(2, 3, *size)
    want = F.interpolate(x, (32, 128), mode="bilinear", align_corners=False)
    torch.testing.assert_close(tps(x), want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "config",
    [{"name": "TPS", "num_fiducial": 8, **SMALL}, {"name": "TPS", "init": "rare", **SMALL}, {**ASTER, **SMALL},
     {"name": "TPS", "model_name": "small"}],
    ids=["identity", "rare", "aster", "openocr"],
)  # fmt: skip
def test_the_last_layer_learns_from_zero(config, batch):
    torch.manual_seed(0)
    tps = build_transform(config, in_channels=1).train()
    x = torch.randn(batch, 1, 32, 128)
    head = tps.loc_net if "model_name" in config else tps.stn_head
    last = head.fc2 if "model_name" in config else head.stn_fc2
    small = x if "model_name" in config else x[..., ::2]
    assert torch.equal(head(small), last.bias.expand(batch, -1))  # not yet a matter of the image
    tps(x).square().mean().backward()
    assert last.weight.grad.abs().max() > 0 and torch.isfinite(last.weight.grad).all()
    assert last.weight._no_reinit and last.bias._no_reinit


def test_coordinates_stay_in_float32_under_autocast():
    torch.manual_seed(0)
    tps = TPS(num_fiducial=8, **SMALL).eval()
    with torch.no_grad():
        tps.stn_head.stn_fc2.bias.copy_(torch.from_numpy(moved()).flatten())
    seen = []
    tps._listener = lambda module, key, value: seen.append((key, value))
    x = torch.randn(2, 3, 64, 256)
    tps(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = tps(x.bfloat16())
    exact, got = (dict(part) for part in (seen[:2], seen[2:]))
    assert out.dtype == torch.bfloat16 and got["grid"].dtype == torch.float32
    assert got["fiducial"].shape == (2, 8, 2) and got["grid"].shape == (2, 32, 128, 2)
    torch.testing.assert_close(got["grid"], exact["grid"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", [{**SMALL}, {"model_name": "small"}], ids=["map", "openocr"])
def test_a_model_in_half_precision_bends_in_float32(config):
    torch.manual_seed(0)
    tps = TPS(num_fiducial=8, **config).eval().bfloat16()
    seen = {}
    tps._listener = lambda module, key, value: seen.update({key: value})
    assert tps(torch.randn(2, 3, 32, 100).bfloat16()).dtype == torch.bfloat16
    assert seen["grid"].dtype == torch.float32


def test_fixed_tables_are_not_saved():
    assert all(name.startswith("stn_head.") for name in TPS(**SMALL).state_dict())


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"init": "raer"}, "expected one of identity, aster, rare"),
        ({"num_fiducial": 5}, "even number"),
        ({"margin": 0.5}, "margin"),
        ({"model_name": "medium"}, "expected small, large or null"),
        ({"model_name": "small", "loc_size": [32, 64]}, "Leave the one or the other out"),
        ({"name": "Aster_TPS", "tps_inputsize": [48, 64]}, r"multiples of 32.*Set it to \[32, 64\]"),
    ],
)
def test_wrong_values_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        build_transform({"name": "TPS", **wrong})


@pytest.mark.parametrize(
    "config",
    [{"name": "STN", **SMALL}, {"name": "STN", "mode": "similarity", **SMALL}, {"name": "TPS", **SMALL},
     {"name": "TPS", "model_name": "small"}, {**ASTER, **SMALL}],
    ids=["affine", "similarity", "tps", "openocr", "aster"],
)  # fmt: skip
def test_every_transform_is_exported_for_any_batch(config):
    transform = build_transform(config).eval()
    x, other = torch.randn(2, 3, 32, 128), torch.randn(5, 3, 32, 128)
    program = torch.export.export(transform, (x,), dynamic_shapes=({0: torch.export.Dim("b", min=1, max=64)},))
    torch.testing.assert_close(program.module()(other), transform(other))
