"""Blocks of detection transformers: stored reference numbers, PyTorch's own attention, points counted by hand."""

import pytest
import torch
from golden_check import check_module, check_op, load_cases
from torch import nn

from openrec.errors import ConfigError
from openrec.modeling.decoders import detr_coords as coords
from openrec.modeling.decoders.detr_blocks import (
    FFN,
    MSDeformAttn,
    MultiheadAttention,
    MultiScaleDeformableAttention,
    TransformerLayer,
)

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


def layer(order, ffns=1):
    torch.manual_seed(1)
    count = order.count("self_attn") + order.count("cross_attn")
    attentions = [MultiheadAttention(8, 2) for _ in range(count)]
    return TransformerLayer(attentions, [FFN(8, 12) for _ in range(ffns)], 8, order)


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


def test_wrong_counts_and_tokens_are_refused():
    with pytest.raises(ConfigError, match="asks for 1 blocks of attn, but there are 0"):
        TransformerLayer([], [], 8, ("self_attn", "norm"))
    with pytest.raises(ConfigError, match="asks for 2 blocks of ffn, but there are 1"):
        TransformerLayer([], [FFN(8, 8)], 8, ("ffn", "ffn"))
    with pytest.raises(ConfigError, match="expected self_attn"):
        TransformerLayer([], [], 8, ("attention",))
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
