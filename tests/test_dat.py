"""DAT: equals its published code, and does what its description says."""

import pytest
import torch
import torch.nn.functional as F
from golden_check import check_module, load_cases
from torch.autograd import gradcheck

from openrec.errors import ConfigError
from openrec.modeling.encoders import build_encoder
from openrec.modeling.encoders.dat import DATAttention, DATBlock, DAttentionBaseline
from openrec.modeling.encoders.dat_encoder import DATEncoder
from openrec.modeling.encoders.svtrv2_mamba import SVTRv2Mamba
from openrec.modeling.layers import Attention, flagged_names

CASES = load_cases("index_dat.json")
SMALL = {
    "dims": [32, 32, 64],
    "depths": [1, 2, 1],
    "num_heads": [2, 2, 4],
    "mixer": ["Conv", "Conv, DAT", "DAT"],
    "use_pos_embed": False,
}


def dat(dim=8, heads=2, **options):
    return DATAttention(dim, heads, **{"rpb_size": (6, 10), **options}).double().eval()


def scatter(module, scale=1.0):
    """Offsets that are not zero."""
    torch.nn.init.normal_(module.conv_offset[3].weight, std=scale)
    return module


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_published_code(case, dtype):
    assert sum(p.numel() for p in DAttentionBaseline(**case["args"]).parameters()) == case["n_params"]
    names = ("out", "pos", "reference")
    check_module(case, lambda: DAttentionBaseline(**case["args"]), dtype, lambda m, i, _: dict(zip(names, m(i["x"]))))


def published(m, x, no_off):
    """DAT's arithmetic in its own units (corner pixels at -1 and 1), one group, no position term, nothing padded."""
    q = m.proj_q(x)
    offset = m.conv_offset(q).tanh() if not no_off else torch.zeros_like(m.conv_offset(q))
    hk, wk = offset.shape[2:]
    rows, columns = ((torch.arange(n).double() + 0.5) / (n - 1) * 2 - 1 for n in (hk, wk))
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)
    points = grid + m.offset_range * offset.permute(0, 2, 3, 1) / torch.tensor([hk - 1.0, wk - 1.0])
    keys = F.grid_sample(x, points.flip(-1), align_corners=True)
    keys = F.avg_pool2d(x, m.stride) if no_off else keys
    q, k, v = (
        t.flatten(2).unflatten(1, (m.num_heads, -1)).transpose(2, 3) for t in (q, m.proj_k(keys), m.proj_v(keys))
    )
    out = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2).view_as(x)
    return m.proj_out(out), points


def baseline(size, stride, ksize, heads=2, groups=1, use_pe=False, no_off=False, fixed=False):
    switches = (use_pe, False, no_off, fixed, ksize, False)
    return DAttentionBaseline(size, size, heads, 4, groups, 0.0, 0.0, stride, 2, *switches)


@pytest.mark.parametrize(
    "size, r, k, found, no_off",
    [
        *[(*case, no_off) for no_off in (False, True) for case in (
            ((5, 9), 2, 2, (2, 4)), ((7, 8), 3, 3, (2, 2)), ((6, 9), 4, 4, (1, 2)), ((6, 9), 3, 3, (2, 3)))],
        ((8, 12), 2, 4, (5, 7), False), ((8, 12), 2, 1, (4, 6), False), ((7, 13), 4, 3, (2, 4), False),
    ],
)  # fmt: skip
def test_published_code_counts_points_as_its_convolution_does(size, r, k, found, no_off):
    module = baseline(size, r, k, no_off=no_off).double()
    x = torch.randn(2, 8, *size).double()
    out, points, _ = scatter(module)(x)
    expected, places = published(module, x, no_off)
    assert points.shape[2:4] == found
    if places.isfinite().all():  # the published grid divides by the number of points less one
        torch.testing.assert_close(points[:, 0], places)
        torch.testing.assert_close(out, expected)
    fixed = baseline(size, r, k, use_pe=True, fixed=True)
    assert fixed.rpe_table.shape[1:] == (size[0] * size[1], points.shape[2:4].numel())
    assert fixed(x.float())[0].isfinite().all()


def test_published_code_shares_channels_out_where_no_table_belongs_to_heads():
    module = baseline((4, 6), 2, 3, heads=2, groups=4)
    assert module(torch.randn(1, 8, 4, 6))[1].shape == (1, 4, 2, 3, 2)
    with pytest.raises(ConfigError, match="cannot be shared out to 4 groups"):
        baseline((4, 6), 2, 3, heads=2, groups=4, use_pe=True)


# ---------------------------------------------------------------------------- zero offsets


def plain(module, x, keys):
    """Attention of every position of ``x`` to ``keys`` [B, Ns, C], without position term."""
    q, k, v = (
        F.linear(t, p.weight.flatten(1), p.bias)
        for p, t in ((module.proj_q, x.flatten(1, 2)), (module.proj_k, keys), (module.proj_v, keys))
    )
    q, k, v = (t.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return F.linear(out, module.proj_out.weight.flatten(1), module.proj_out.bias).view_as(x)


def pool(x, size):
    return F.avg_pool2d(x.permute(0, 3, 1, 2), size).flatten(2).transpose(1, 2)


def middle(x, axis):
    """The central two of every four along an axis."""
    return x.unflatten(axis, (-1, 4)).narrow(axis + 1, 1, 2).flatten(axis, axis + 1)


@pytest.mark.parametrize(
    "mode, stride, keys",
    [
        ("center", 1, lambda x: x.flatten(1, 2)),
        ("corner", 1, lambda x: x.flatten(1, 2)),
        ("center", 2, lambda x: pool(x, 2)),
        ("center", 3, lambda x: x[:, 1::3, 1::3].flatten(1, 2)),
        ("center", 4, lambda x: pool(middle(middle(x, 1), 2), 2)),
        ("center", (1, 2), lambda x: pool(x, (1, 2))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("groups", [1, 2])
def test_zero_offsets_are_attention_to_the_strided_grid(mode, stride, keys, groups):
    module = dat(n_groups=groups, stride=stride, ref_mode=mode, use_rpb=False)
    x = torch.randn(2, 12, 12, 8).double() if stride == 4 else torch.randn(2, 6, 12, 8).double()
    torch.testing.assert_close(module(x), plain(module, x, keys(x)))


def test_stride_one_reads_the_table_like_swin():
    h, w = 4, 6
    module = dat(stride=1, ref_mode="corner", rpb_size=(h, w))
    points, _ = module.points(torch.randn(1, h, w, 8).double())
    bias = module.bias(points, (h, w))[0]
    y, x = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
    expected = module.rpe_table[:, y[:, None] - y + h - 1, x[:, None] - x + w - 1]
    torch.testing.assert_close(bias, expected)


def test_corner_grid_spans_the_map():
    _, reference = dat(stride=2).points(torch.randn(1, 6, 10, 8).double())
    assert reference[0, 0].tolist() == [0, 0] and reference[-1, -1].tolist() == [5, 9]
    _, shifted = dat(stride=2, ref_mode="shifted").points(torch.randn(1, 6, 10, 8).double())
    assert shifted[-1, -1, 0] > 5  # what the published code does


# ---------------------------------------------------------------------------- offsets


def test_constant_offset_shifts_the_map():
    module = dat(stride=1)
    x = torch.randn(2, 6, 10, 8).double()
    points, _ = module.points(x)
    moved = module.sample(x, points + torch.tensor([0.0, 1.0])).view_as(x)
    torch.testing.assert_close(moved[:, :, :-1], x[:, :, 1:])
    assert moved[:, :, -1].abs().max() < 1e-12


@pytest.mark.parametrize("mode", ["corner", "center"])
def test_range_of_offsets(mode):
    q = torch.randn(2, 6, 10, 8).double()
    widths = []
    for s in (0.5, 1.0, 2.0):
        torch.manual_seed(0)
        module = scatter(dat(n_groups=2, stride=2, offset_range=s, ref_mode=mode), 5.0)
        points, reference = module.points(q)
        offset = (points - reference).abs().amax((0, 1, 2, 3))
        spacing = torch.tensor([5 / 2, 9 / 4] if mode == "corner" else [2.0, 2.0]).double()
        assert (offset <= s / 2 * spacing + 1e-9).all() and (offset > s / 4 * spacing).all()
        widths.append(offset)
    assert (widths[0] < widths[1]).all() and (widths[1] < widths[2]).all()


def test_negative_range_stays_on_the_map():
    points, _ = scatter(dat(stride=2, offset_range=-1), 50.0).points(torch.randn(2, 6, 10, 8).double())
    assert points.min() == 0 and points[..., 0].max() == 5 and points[..., 1].max() == 9


def test_groups_move_only_their_channels():
    module = scatter(dat(n_groups=2, stride=2))
    x = torch.randn(1, 6, 10, 8).double()
    points, _ = module.points(x)
    before = module.sample(x, points)
    points[:, 1] += 0.3
    after = module.sample(x, points)
    assert torch.equal(after[..., :4], before[..., :4]) and not torch.allclose(after[..., 4:], before[..., 4:])


def test_groups_with_equal_points_are_one_group():
    one, two = dat(n_groups=1, stride=2), dat(n_groups=2, stride=2)
    x, points = torch.randn(2, 6, 10, 8).double(), torch.rand(2, 1, 3, 5, 2).double() * 5
    torch.testing.assert_close(one.sample(x, points), two.sample(x, points.expand(-1, 2, -1, -1, -1)))
    two.rpe_table.data.copy_(one.rpe_table)
    torch.testing.assert_close(one.bias(points, (6, 10)), two.bias(points.expand(-1, 2, -1, -1, -1), (6, 10)))


def test_points_do_not_depend_on_the_query():
    module = scatter(dat(stride=2, use_rpb=False))
    x = torch.randn(1, 6, 10, 8).double()
    q = F.linear(x, module.proj_q.weight.flatten(1), module.proj_q.bias)
    keys = module.sample(x, module.points(q)[0])
    assert keys.shape == (1, 15, 8)  # one set for all 60 queries
    order = torch.randperm(60)
    permuted = x.flatten(1, 2)[:, order].view_as(x)
    torch.testing.assert_close(
        plain(module, permuted, keys).flatten(1, 2), plain(module, x, keys).flatten(1, 2)[:, order]
    )
    torch.testing.assert_close(module(x), plain(module, x, keys))


# ---------------------------------------------------------------------------- relative bias


def test_integer_displacements_read_the_table_and_fractions_interpolate_it():
    module = dat(stride=1, n_groups=2)
    d = torch.tensor([[0, 0], [-5, 9], [5, -9], [2, 3]]).double()
    got = module.read_table(d.expand(1, 2, 1, 4, 2))[0, :, 0]
    torch.testing.assert_close(got, module.rpe_table[:, d[:, 0].long() + 5, d[:, 1].long() + 9])
    rows, columns = torch.meshgrid(torch.arange(-5.0, 6), torch.arange(-9.0, 10), indexing="ij")
    module.rpe_table.data.copy_((2 * rows - 3 * columns + 1).expand(2, -1, -1))
    d = torch.rand(3, 2, 7, 5, 2).double() * torch.tensor([10, 18]) - torch.tensor([5, 9])
    got = module.read_table(d)  # [B, heads, N, Ns]; a head per group
    torch.testing.assert_close(got, 2 * d[..., 0] - 3 * d[..., 1] + 1)


def test_bias_depends_on_displacements_only():
    module = dat(stride=2)
    bias = module.bias(torch.tensor([[2.3, 4.6], [3.3, 5.6]]).double().view(1, 1, 2, 1, 2), (6, 10))
    bias = bias.view(2, 6, 10, 2)
    torch.testing.assert_close(bias[:, 1:, 1:, 1], bias[:, :-1, :-1, 0])


def test_a_map_larger_than_the_table_is_refused():
    with pytest.raises(ValueError, match="max_sz"):
        dat()(torch.randn(1, 7, 10, 8).double())
    dat(pe="log_cpb")(torch.randn(1, 7, 12, 8).double())


# ---------------------------------------------------------------------------- sizes, gradients, precision


@pytest.mark.parametrize("size", [(1, 1), (1, 10), (2, 10), (6, 1), (5, 9), (3, 2)])
@pytest.mark.parametrize("mode", ["corner", "center", "shifted"])
@pytest.mark.parametrize("pe", ["rpe", "log_cpb", "dwc", "none"])
def test_small_maps(size, mode, pe):
    module = scatter(dat(stride=2, n_groups=2, ref_mode=mode, pe=pe))
    x = torch.randn(2, *size, 8).double().requires_grad_()
    out, points, _ = module.attend(x)
    assert points.shape == (2, 2, -(-size[0] // 2), -(-size[1] // 2), 2)
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all()


def test_kernel_equal_to_the_stride_covers_the_border():
    points, _ = dat(stride=2, ksize=2).points(torch.randn(1, 5, 9, 8).double())
    assert points.shape[2:4] == (3, 5)


def test_gradcheck():
    torch.manual_seed(1)
    module = scatter(dat(dim=4, heads=2, n_groups=2, stride=2, ksize=3, rpb_size=(3, 4)), 0.3)
    x = torch.randn(1, 3, 4, 4).double().requires_grad_()
    fraction = module.points(F.linear(x, module.proj_q.weight.flatten(1), module.proj_q.bias))[0].detach()
    assert ((fraction - fraction.round()).abs() > 1e-4).all()
    assert gradcheck(module, (x,), eps=1e-7, atol=1e-5)
    weight = module.conv_offset[3].weight
    assert gradcheck(
        lambda w: torch.func.functional_call(module, {"conv_offset.3.weight": w}, (x.detach(),)), (weight,), eps=1e-7
    )


def test_offset_network_learns_from_its_zero_start():
    module = dat(stride=2)
    module(torch.randn(2, 6, 10, 8).double()).square().sum().backward()
    last = module.conv_offset[3].weight
    assert last.abs().max() == 0 and last.grad.abs().max() > 0


def test_autocast_keeps_positions_in_float32():
    module = scatter(dat(dim=32, stride=2).float())
    x = torch.randn(2, 6, 10, 32)
    with torch.autocast("cpu", torch.bfloat16):
        low, points, _ = module.attend(x)
    assert points.dtype == torch.float32
    out = module(x)
    assert (low.float() - out).norm() / out.norm() < 2e-2


@pytest.mark.parametrize("pe", ["rpe", "log_cpb", "dwc", "fixed", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(pe, dtype):
    torch.manual_seed(0)
    module = scatter(dat(dim=32, stride=2, pe=pe).float())
    x = torch.randn(2, 6, 10, 32)
    want = module(x)
    got, points, _ = module.to(dtype).attend(x.to(dtype))
    assert got.dtype == dtype and points.dtype == torch.float32
    assert (got.float() - want).norm() / want.norm() < 5e-2


@pytest.mark.parametrize("pe", ["rpe", "log_cpb"])
def test_autocast_leaves_the_bias_as_it_is(pe):
    module = dat(stride=2, pe=pe).float()
    points = torch.rand(2, 1, 3, 5, 2) * 5
    want = module.bias(points, (6, 10))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module.bias(points, (6, 10)), want, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------------- in the skeleton


def test_numbers_of_parameters():
    c, heads, h, w, k = 32, 4, 8, 24, 5
    block = DATBlock(c, heads, (h, w), n_groups=2, ksize=k)
    attention = 4 * (c * c + c) + 16 * k * k + 16 + 2 * 16 + 2 * 16 + heads * (2 * h - 1) * (2 * w - 1)
    assert sum(p.numel() for p in block.attn.parameters()) == attention
    assert sum(p.numel() for p in block.parameters()) == attention + 4 * c + 8 * c * c + 5 * c


def test_lpu_is_a_depthwise_convolution_before_the_block():
    block, plain = (DATBlock(8, 2, (6, 10), lpu=on).eval() for on in (True, False))
    plain.load_state_dict({k: v for k, v in block.state_dict().items() if not k.startswith("lpu")})
    x, conv = torch.randn(2, 8, 6, 10), block.lpu.conv
    seen = x + F.conv2d(x, conv.weight, conv.bias, padding=1, groups=8)
    torch.testing.assert_close(block(x), plain(seen))
    model = SVTRv2Mamba(**SMALL, mixer_cfg={"DAT": {"lpu": True}})
    assert [hasattr(m, "lpu") for m in model.modules() if isinstance(m, DATBlock)] == [True, True]
    assert not hasattr(plain, "lpu")


def test_zero_start_and_table_survive_the_skeleton():
    model = SVTRv2Mamba(**SMALL)
    blocks = [m for m in model.modules() if isinstance(m, DATBlock)]
    assert len(blocks) == 2 and [b.attn.rpb_size for b in blocks] == [(8, 32), (4, 32)]
    for block in blocks:
        assert block.attn.conv_offset[3].weight.abs().max() == 0
        assert 0.005 < block.attn.rpe_table.std() < 0.015
    undecayed = flagged_names(model)
    assert {n for n, _ in model.named_parameters() if n.endswith("rpe_table")} <= undecayed
    assert not any("proj_q.weight" in name for name in undecayed)


def test_arguments_per_stage():
    cfg = {"n_groups": [1, 2, 4], "stride": [[2, 2], [2, 2], [1, 2]], "ksize": [5, 5, 3], "offset_range": -1}
    model = SVTRv2Mamba(**SMALL, mixer_cfg={"DAT": cfg})
    found = [(m.n_groups, m.stride, m.ksize) for m in model.modules() if isinstance(m, DATAttention)]
    assert found == [(2, (2, 2), 5), (4, (1, 2), 3)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mixer_cfg": {"DAT": {"n_group": 1}}}, 'Did you mean "n_groups"'),
        ({"mixer_cfg": {"DAT": {"n_groups": 3}}}, "cannot be shared out to 3 groups"),
        ({"mixer_cfg": {"DAT": {"n_groups": [1, 2]}}}, "one per stage"),
        ({"mixer_cfg": {"DAT": {"ksize": 1}}}, "smaller than the stride"),
        ({"mixer_cfg": {"DAT": {"ksize": 4}}}, "odd or equal"),
        ({"mixer_cfg": {"DAT": {"stride": [0, 2]}}}, "positive"),
        ({"mixer_cfg": {"DAT": {"ref_mode": "edge"}}}, "corner, center"),
        ({"mixer_cfg": {"DAT": {"map_size": [1, 1]}}}, "has no such key"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        build_encoder({"name": "SVTRv2Mamba", **SMALL, **options})


def test_encoder_alternates_local_and_deformable_blocks():
    model = DATEncoder(dims=[32, 32, 64], num_heads=[1, 2, 4], n_groups=[1, 1, 2], stage_spec=["C", "L, D, S", "D, M"])
    kinds = [[type(b).__name__ for b in stage.blocks] for stage in list(model.stages)[:3]]
    assert kinds == [["ConvBlock"], ["True2DBlock", "DATBlock", "True2DBlock"], ["DATBlock", "DASSMBlock"]]
    assert [b.attn.shift for b in (model.stages[1].blocks[0], model.stages[1].blocks[2])] == [False, True]
    assert model.stages[1].blocks[0].attn.window_size == (8, 8)
    assert model(torch.randn(2, 3, 32, 128)).shape == (2, 64, 4, 32) and model.out_rank == 4
    layers = [m for m in model.modules() if isinstance(m, DATAttention)]
    maps = [torch.randn(1, h, 32, m.proj_q.in_channels) for h, m in zip((8, 4), layers)]
    points = [m.points(q)[0].shape[2:4].numel() for m, q in zip(layers, maps)]
    assert points == [64, 64]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stage_spec": ["C", "X", "D"]}, 'no mixer is called "X"'),
        ({"stage_spec": "CLD"}, "one list or string per stage"),
        ({"n_groups": [1]}, "one value per stage"),
    ],
)
def test_encoder_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        build_encoder({"name": "DATEncoder", **options})


def test_one_group_stride_one_is_the_attention_of_svtr():
    module, other = dat(stride=1, use_rpb=False), Attention(8, 2, qkv_bias=True).double()
    for name in ("weight", "bias"):
        parts = [getattr(getattr(module, f"proj_{p}"), name).flatten(1 if name == "weight" else 0) for p in "qkv"]
        getattr(other.qkv, name).data.copy_(torch.cat(parts))
        getattr(other.proj, name).data.copy_(getattr(module.proj_out, name).view_as(getattr(other.proj, name)))
    x = torch.randn(2, 6, 10, 8).double()
    torch.testing.assert_close(module(x).flatten(1, 2), other(x.flatten(1, 2)))
