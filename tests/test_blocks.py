"""Blocks of detection transformers: stored reference numbers, PyTorch's own attention, points counted by hand."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from golden_check import check_module, check_op, load_cases
from torch import nn

from openrec.diagnose.scalars import scalars
from openrec.errors import ConfigError
from openrec.modeling.blocks import (
    FFN,
    MSDeformAttn,
    MultiheadAttention,
    MultiScaleDeformableAttention,
    TransformerLayer,
)
from openrec.modeling.decoders import detr_coords as coords
from openrec.modeling.layers import flagged_names

CASES = load_cases("index_detr.json")
OPS = {name: case for name, case in CASES.items() if case["kind"] == "op"}
MODULES = {name: case for name, case in CASES.items() if case["kind"] == "module"}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])


def call_op(name, inputs, args, dtype):
    if name.startswith("sine_pos"):
        make = coords.PositionEmbeddingSineHW if name.startswith("sine_pos_hw") else coords.PositionEmbeddingSine
        return {"out": make(**args)(inputs["mask"], dtype)}
    if name.startswith("gen_encoder"):
        mask = inputs["memory_padding_mask"].bool()
        memory, boxes = coords.gen_encoder_output_proposals(
            inputs["memory"], mask, args["spatial_shapes"], inputs.get("learnedwh")
        )
        far = boxes.isinf()
        return {"output_memory": memory, "output_proposals": boxes.masked_fill(far, 0), "proposals_inf": far}
    function = getattr(coords, {"gen_sineembed": "gen_sineembed_for_position"}.get(*[name.split("/")[0]] * 2))
    return {"out": function(*inputs.values(), **args)}


@DTYPES
@pytest.mark.parametrize("name", OPS)
def test_coordinates_equal_reference(name, dtype):
    check_op(OPS[name], lambda inputs, args: call_op(name, inputs, args, dtype), dtype)


def call_deformable(module, inputs, run):
    names = ("query", "reference_points", "input_flatten", "input_spatial_shapes")
    return {"out": module(*(inputs[k] for k in names), input_padding_mask=inputs.get("input_padding_mask"))}


@DTYPES
@pytest.mark.parametrize("name", MODULES)
def test_deformable_attention_equals_reference(name, dtype):
    case = MODULES[name]
    check_module(case, lambda: MSDeformAttn(**case["args"]), dtype, call_deformable)


@pytest.mark.parametrize("positions", [False, True])
def test_attention_is_pytorchs_plus_identity(positions):
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(16, 4).double(), nn.MultiheadAttention(16, 4, batch_first=True).double()
    layers = (ours.q_proj, ours.k_proj, ours.v_proj)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        theirs.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    q, k = torch.randn(2, 5, 16).double(), torch.randn(2, 7, 16).double()
    q_pos, k_pos = (torch.randn_like(t) if positions else None for t in (q, k))
    blocked, padding = torch.rand(5, 7) < 0.3, torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:], blocked[:, 0] = True, False
    with_pos = (q + q_pos, k + k_pos) if positions else (q, k)
    want = q + theirs(*with_pos, k, attn_mask=blocked, key_padding_mask=padding)[0]
    got = ours(q, k, query_pos=q_pos, key_pos=k_pos, attn_mask=blocked, key_padding_mask=padding)
    torch.testing.assert_close(got, want)
    want = q + theirs(with_pos[0], with_pos[0], q)[0]  # self-attention: the keys have the queries' positions
    torch.testing.assert_close(ours(q, query_pos=q_pos), want)


def test_positions_never_enter_the_value():
    attention, x = MultiheadAttention(8, 2).eval(), torch.randn(1, 4, 8)
    one_key = attention(x, x[:, :1], query_pos=torch.randn(1, 4, 8), key_pos=torch.randn(1, 1, 8))
    torch.testing.assert_close(one_key, attention(x, x[:, :1]))  # with one key there is nothing to weigh


def deformable(points=4, levels=2):
    module = MultiScaleDeformableAttention(8, 2, levels, points, dropout=0.0)
    for layer in (module.value_proj, module.output_proj):
        nn.init.eye_(layer.weight)
    return module.double()


SHAPES = [(4, 8), (2, 4)]


def test_deformable_attention_starts_on_a_ring_with_equal_weights():
    module = MultiScaleDeformableAttention(16, 4, 2, 3)
    ring = module.sampling_offsets.bias.view(4, 2, 3, 2)
    assert torch.equal(ring[:, 0], ring[:, 1]) and torch.equal(ring.abs().amax(-1)[0, 0], torch.tensor([1.0, 2.0, 3.0]))
    assert not module.sampling_offsets.weight.any() and not module.attention_weights.weight.any()


def test_no_queries_read_nothing():
    module = MultiScaleDeformableAttention(16, 4, 2, 3)
    out = module.attend(torch.zeros(2, 0, 16), torch.zeros(2, 0, 1, 4), torch.randn(2, 40, 16), SHAPES)
    assert out.shape == (2, 0, 16)


def test_sine_codes_run_once_around_the_circle_by_default():
    mask = torch.zeros(1, 3, 5, dtype=torch.bool)
    for kind in (coords.PositionEmbeddingSine, coords.PositionEmbeddingSineHW):
        codes = [kind(8, normalize=True, **scale)(mask) for scale in ({}, {"scale": None}, {"scale": 2 * math.pi})]
        assert torch.equal(codes[0], codes[2]) and torch.equal(codes[1], codes[2])


def test_constant_maps_read_as_their_constant_inside():
    module, value = deformable(), torch.ones(1, 40, 8).double() * 3
    reference = torch.full((1, 2, 2, 4), 0.5).double()
    reference[..., 2:] = 0.2
    torch.testing.assert_close(module.attend(torch.randn(1, 2, 8).double(), reference, value, SHAPES), value[:, :2])


@pytest.mark.parametrize(("offset", "where"), [((0, 0), (0.5, 0.4)), ((4, 0), (0.7, 0.4)), ((0, -4), (0.5, 0.3))])
def test_a_box_is_sampled_at_its_centre_and_up_to_its_edges(offset, where):
    module = deformable()
    with torch.no_grad():
        module.sampling_offsets.bias.copy_(torch.tensor(offset).repeat(16).double())
    told = {}
    module._listener = lambda _, key, tensor: told.__setitem__(key, tensor)
    box = torch.tensor([0.5, 0.4, 0.4, 0.2]).double().view(1, 1, 1, 4)
    module.attend(torch.zeros(1, 1, 8).double(), box, torch.randn(1, 40, 8).double(), SHAPES)
    torch.testing.assert_close(told["loc"], torch.tensor(where).double().expand(1, 2, 1, 8, 2))
    assert told["attn"].shape == (1, 2, 1, 8)


def test_pixel_offsets_are_pixels_of_their_level():
    module = deformable()
    with torch.no_grad():
        module.sampling_offsets.bias.copy_(torch.tensor([2.0, 1.0]).repeat(16).double())
    told = {}
    module._listener = lambda _, key, tensor: told.__setitem__(key, tensor)
    point = torch.full((1, 1, 2, 2), 0.25).double()
    module.attend(torch.zeros(1, 1, 8).double(), point, torch.randn(1, 40, 8).double(), SHAPES)
    loc = told["loc"][0, 0, 0].view(2, 4, 2)
    assert loc[0, 0].tolist() == [0.5, 0.5] and loc[1, 0].tolist() == [0.75, 0.75]


@torch.no_grad()
def test_deformable_attention_tells_pixels_around_boxes():
    module, told = deformable(), {}
    module.sampling_offsets.bias.copy_(torch.tensor([4.0, 0.0]).repeat(16))
    module._listener = lambda _, key, tensor: told.__setitem__(key, tensor)
    box = torch.tensor([0.5, 0.4, 0.4, 0.2]).double().view(1, 1, 1, 4)
    module.attend(torch.zeros(1, 1, 8).double(), box, torch.randn(1, 40, 8).double(), SHAPES)
    torch.testing.assert_close(told["ref"], box[:, :, 0, :2])
    by_level = told["offset"][0, 0, 0, :, 0]  # to the right edge: 0.2 of maps of 8 and 4 pixels
    torch.testing.assert_close(by_level, torch.tensor([[1.6, 0.0], [0.8, 0.0]]).double())
    moved = scalars({("a", k): [t] for k, t in told.items()})
    assert moved["offset_share/a"] == pytest.approx(0.2) and moved["offset_rms_px/a"] > 0


def random_deformable():
    torch.manual_seed(0)
    module = deformable(points=3)
    for layer in (module.sampling_offsets, module.attention_weights, module.value_proj):
        nn.init.normal_(layer.weight, std=0.3)
    return module


def test_deformable_attention_on_a_ramp_reads_the_ramp_where_it_looks():
    """x before y, width with x, one softmax over all levels: on maps whose values are 3 x + 5 y."""
    module, told = random_deformable(), {}
    with torch.no_grad():
        module.sampling_offsets.bias.mul_(0.1)
    nn.init.eye_(module.value_proj.weight)
    ramp = torch.cat([3 * places[:, 0] + 5 * places[:, 1] for places in (centres(*size) for size in SHAPES)])
    module._listener = lambda _, key, tensor: told.__setitem__(key, tensor)
    point = torch.tensor([0.5, 0.5]).double().expand(1, 6, 2, 2)
    got = module.attend(torch.randn(1, 6, 8).double() * 0.2, point, ramp.view(1, -1, 1).expand(-1, -1, 8), SHAPES)
    loc, weights = told["loc"][0], told["attn"][0]  # [heads, queries, points of both levels]
    assert loc.min() > 0.25 and loc.max() < 0.75, "inside of the coarser map's centres"
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6).double())
    want = (weights * (3 * loc[..., 0] + 5 * loc[..., 1])).sum(-1).T.repeat_interleave(4, 1)
    torch.testing.assert_close(got[0], want)


def centres(h, w):
    return torch.tensor([[(x + 0.5) / w, (y + 0.5) / h] for y in range(h) for x in range(w)]).double()


@pytest.mark.parametrize("numbers", [2, 4])
def test_deformable_attention_is_a_sum_over_heads_levels_and_points(numbers):
    module = random_deformable()
    query, value = torch.randn(2, 5, 8).double(), torch.randn(2, 40, 8).double()
    reference = torch.rand(2, 5, 2, numbers).double() * 0.4 + 0.3
    offsets = module.sampling_offsets(query).view(2, 5, 2, 2, 3, 2)
    weights = module.attention_weights(query).view(2, 5, 2, 6).softmax(-1).view(2, 5, 2, 2, 3)
    maps = module.value_proj(value).split([32, 8], 1)
    want = torch.zeros(2, 5, 2, 4).double()
    for head, (level, (h, w)), k in itertools.product(range(2), enumerate(SHAPES), range(3)):
        scale = reference[:, :, level, 2:] / 6 if numbers == 4 else torch.tensor([1 / w, 1 / h]).double()
        loc = reference[:, :, level, :2] + offsets[:, :, head, level, k] * scale
        picture = maps[level][..., 4 * head : 4 * head + 4].transpose(1, 2).unflatten(-1, (h, w))
        read = F.grid_sample(picture, 2 * loc[:, None] - 1, align_corners=False)[:, :, 0].transpose(1, 2)
        want[:, :, head] += weights[:, :, head, level, k, None] * read
    got = module.attend(query, reference, value, SHAPES)
    torch.testing.assert_close(got, module.output_proj(want.flatten(2)))


def test_gradients_of_deformable_attention_over_two_levels():
    module = random_deformable()
    query, value = torch.randn(1, 2, 8).double(), torch.randn(1, 40, 8).double()
    box = torch.tensor([[0.41, 0.47, 0.3, 0.2], [0.63, 0.52, 0.2, 0.3]]).double().view(1, 2, 1, 4)
    inputs = [t.requires_grad_() for t in (query, box, value)]
    assert torch.autograd.gradcheck(lambda q, r, v: module.attend(q, r, v, SHAPES), inputs, eps=1e-7, atol=1e-5)


def layer(order, ffns=1):
    torch.manual_seed(1)
    count = order.count("self_attn") + order.count("cross_attn")
    attentions = [MultiheadAttention(8, 2) for _ in range(count)]
    return TransformerLayer(attentions, [FFN(8, 12) for _ in range(ffns)], nn.LayerNorm(8), order)


def test_post_norm_and_pre_norm_against_layers_written_by_hand():
    x, memory, pos = (torch.randn(2, 3, 8) for _ in range(3))
    post = layer(("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"))
    (a, b), (f,), n = post.attentions, post.ffns, post.norms
    y = n[0](a(x, query_pos=pos))
    y = n[1](b(y, memory, query_pos=pos))
    torch.testing.assert_close(post(x, memory, query_pos=pos), n[2](f(y)))
    pre = layer(("norm", "self_attn", "norm", "ffn", "norm", "ffn"), ffns=2)
    (a,), f, n = pre.attentions, pre.ffns, pre.norms
    y = a(n[0](x), identity=x, query_pos=pos)
    y = y + f[0].layers(n[1](y))
    torch.testing.assert_close(pre(x, query_pos=pos), y + f[1].layers(n[2](y)))


def test_every_place_gets_a_copy_of_a_module_that_stands_alone():
    attention = MultiScaleDeformableAttention(8, 2, 1, 3)
    order = ("self_attn", "norm", "cross_attn", "norm", "ffn", "norm")
    made = TransformerLayer(attention, FFN(8, 12), nn.LayerNorm(8), order)
    assert [len(x) for x in (made.attentions, made.ffns, made.norms)] == [2, 1, 3]
    assert made.norms[0] is not made.norms[1] and made.attentions[0] is not made.attentions[1]
    for copied in made.attentions:
        assert flagged_names(copied, "_no_reinit") == flagged_names(attention, "_no_reinit") != set()


def test_cross_attention_takes_its_own_positions_and_masks():
    made = layer(("self_attn", "norm", "cross_attn", "norm", "ffn", "norm"))
    x, key, value, pos, key_pos = (torch.randn(2, n, 8) for n in (3, 5, 5, 3, 5))
    own, cross = torch.rand(3, 3) < 0.4, torch.rand(3, 5) < 0.4
    own[:, 0], cross[:, 0] = False, False
    absent, padding = torch.tensor([[False, False, True]] * 2), torch.tensor([[False] * 4 + [True]] * 2)
    (a, b), (f,), n = made.attentions, made.ffns, made.norms
    y = n[0](a(x, query_pos=pos, attn_mask=own, key_padding_mask=absent))
    y = b(y, key, value, query_pos=pos, key_pos=key_pos, attn_mask=cross, key_padding_mask=padding)
    got = made(x, key, value, pos, key_pos, (own, cross), absent, padding)
    torch.testing.assert_close(got, n[2](f(n[1](y))))


def test_wrong_counts_and_tokens_are_refused():
    norm = nn.LayerNorm(8)
    with pytest.raises(ConfigError, match="asks for 1 blocks of attn, but there are 0"):
        TransformerLayer([], [], norm, ("self_attn", "norm"))
    with pytest.raises(ConfigError, match="asks for 2 blocks of ffn, but there are 1"):
        TransformerLayer([], [FFN(8, 8)], norm, ("ffn", "ffn"))
    with pytest.raises(ConfigError, match="asks for 2 blocks of norm, but there are 1"):
        TransformerLayer([], FFN(8, 8), [norm], ("norm", "ffn", "norm"))
    with pytest.raises(ConfigError, match="expected self_attn"):
        TransformerLayer([], [], norm, ("attention",))
    with pytest.raises(ValueError, match="expected 1 attn_masks, got 2"):
        layer(("self_attn", "norm"), ffns=0)(torch.zeros(1, 2, 8), attn_masks=(None, None))
    with pytest.raises(ConfigError, match="heads"):
        MultiScaleDeformableAttention(10, 4)
    with pytest.raises(ConfigError, match="heads"):
        MultiheadAttention(10, 4)


def test_generalised_iou_by_hand():
    a, b = torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([1.0, 0.0, 3.0, 2.0])
    iou, generalised = coords.pair_iou(a, b)
    assert iou.item() == pytest.approx(1 / 3) and generalised.item() == pytest.approx(1 / 3)
    iou, generalised = coords.pair_iou(a, torch.tensor([4.0, 0.0, 6.0, 2.0]))
    assert iou.item() == 0 and generalised.item() == pytest.approx(-(12 - 8) / 12)
    zero = torch.zeros(4, requires_grad=True)
    coords.pair_iou(zero, torch.zeros(4))[1].backward()
    assert zero.grad.isfinite().all()
