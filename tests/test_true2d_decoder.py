"""True2D's decoder: where it samples, what it returns there, and that reading is what training learns."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openrec.errors import ConfigError
from openrec.modeling import build_model
from openrec.modeling.decoders import build_decoder
from openrec.modeling.decoders.true2d_decoder import (
    DeformableCrossAttention2D,
    Memory,
    ReferencePoints,
    ring_offsets,
)
from openrec.modeling.layers import flagged_names, init_svtr

TINY = {
    "name": "True2DDecoder", "in_channels": 16, "out_channels": 13, "n_layers": 2, "n_head": 4, "d_inner": 24,
    "n_points": 3, "max_len": 6, "dropout": 0.0, "map_size": [4, 8],
}  # fmt: skip
MODES = ["soft_argmax", "reading", "learned", "iterative"]


def plain(dim=4, heads=2, points=3, dtype=torch.float64, **options):
    """A read whose projections are identities: what it returns is what it sampled."""
    module = DeformableCrossAttention2D(dim, heads, points, "learned", **options).to(dtype)
    for layer in (module.value_proj, module.output_proj):
        nn.init.eye_(layer.weight)
    return module


def tokens(maps):
    return maps.flatten(2).transpose(1, 2)


def read(module, query, maps, reference):
    return module.sample(query, module.memory(tokens(maps), maps.shape[2:]).value, reference)


# -- sampling --------------------------------------------------------------------------------------


def test_one_point_without_offset_is_bilinear_sampling():
    module = DeformableCrossAttention2D(6, 2, 1, "learned", offset_init="zero").double()
    maps, query = torch.randn(2, 6, 3, 5).double(), torch.randn(2, 4, 6).double()
    reference = torch.rand(2, 4, 2).double()
    value = module.value_proj(tokens(maps)).transpose(1, 2).unflatten(2, (3, 5))
    sampled = F.grid_sample(value, (2 * reference - 1)[:, :, None], align_corners=False)[..., 0]
    want = module.output_proj(sampled.transpose(1, 2))
    torch.testing.assert_close(read(module, query, maps, reference), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixel_centres_return_the_map_bit_by_bit(dtype):
    module = plain(points=1, dtype=dtype, offset_init="zero")
    maps = torch.randn(2, 4, 4, 8, dtype=dtype)
    y, x = torch.meshgrid(torch.arange(4), torch.arange(8), indexing="ij")
    centres = torch.stack(((x.to(dtype) + 0.5) / 8, (y.to(dtype) + 0.5) / 4), -1).view(1, 32, 2).expand(2, -1, -1)
    assert torch.equal(read(module, torch.randn(2, 32, 4, dtype=dtype), maps, centres), tokens(maps))


def test_the_corner_of_the_map_is_a_quarter_of_the_last_pixel():
    module = plain(points=1, offset_init="zero")
    maps = torch.randn(1, 4, 3, 5).double()
    out = read(module, torch.randn(1, 1, 4).double(), maps, torch.ones(1, 1, 2).double())
    torch.testing.assert_close(out[0, 0], maps[0, :, -1, -1] / 4, rtol=0, atol=1e-12)


def test_a_ramp_is_read_at_the_weighted_mean_point():
    h, w = 5, 11  # not square: an exchange of x and y, or of H and W, would show
    module = plain(dim=4, heads=2, points=3, offset_init="zero")
    alpha, beta, gamma = (torch.randn(4, 1, 1).double() for _ in range(3))
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    maps = (alpha * x + beta * y + gamma)[None]
    with torch.no_grad():
        for layer in (module.sampling_offsets, module.attention_weights):
            layer.bias.uniform_(-1, 1)  # pixels, and logits of the weights
    reference = torch.rand(1, 7, 2).double() * 0.3 + 0.35
    out = read(module, torch.zeros(1, 7, 4).double(), maps, reference)
    offset = module.sampling_offsets.bias.view(2, 3, 2)
    weight = module.attention_weights.bias.view(2, 3).softmax(-1)
    for head in range(2):
        loc = reference + (weight[head][:, None] * offset[head]).sum(0) / torch.tensor([w, h])
        for c in (2 * head, 2 * head + 1):
            want = alpha[c, 0, 0] * loc[..., 0] + beta[c, 0, 0] * loc[..., 1] + gamma[c, 0, 0]
            torch.testing.assert_close(out[..., c], want, rtol=0, atol=1e-7)  # the grid above is float32


def randomised(dim=6, heads=3, points=2):
    module = DeformableCrossAttention2D(dim, heads, points, "learned", ring_size=(3, 5)).double()
    for layer in (module.sampling_offsets, module.attention_weights):
        nn.init.normal_(layer.weight, std=0.3)
    return module


def test_all_heads_at_once_are_a_loop_over_heads():
    module = randomised()
    maps, query, reference = (
        torch.randn(2, 6, 3, 5).double(),
        torch.randn(2, 4, 6).double(),
        torch.rand(2, 4, 2).double(),
    )
    value = module.value_proj(tokens(maps)).transpose(1, 2).unflatten(2, (3, 5))
    offset = module.sampling_offsets(query).view(2, 4, 3, 2, 2)
    weight = module.attention_weights(query).view(2, 4, 3, 2).softmax(-1)
    heads = []
    for m in range(3):
        loc = reference[:, :, None] + offset[:, :, m] / torch.tensor([5.0, 3.0])
        sampled = F.grid_sample(value[:, 2 * m : 2 * m + 2], 2 * loc - 1, align_corners=False)  # [B, 2, T, K]
        heads.append((sampled * weight[:, None, :, m]).sum(-1).transpose(1, 2))
    want = module.output_proj(torch.cat(heads, -1))
    torch.testing.assert_close(read(module, query, maps, reference), want, rtol=0, atol=1e-12)


def test_gradients():
    module = randomised(dim=4, heads=2)
    torch.manual_seed(3)
    query, maps = torch.randn(1, 2, 4).double(), torch.randn(1, 4, 3, 5).double()
    reference = torch.rand(1, 2, 2).double()
    with torch.no_grad():
        pixels = (reference[:, :, None, None] * torch.tensor([5.0, 3.0]) - 0.5) + module.sampling_offsets(query).view(
            1, 2, 2, 2, 2
        )
        assert (pixels - pixels.round()).abs().min() > 1e-3  # off the kinks of bilinear sampling
    inputs = [t.requires_grad_() for t in (query, maps, reference)]
    assert torch.autograd.gradcheck(lambda q, m, r: read(module, q, m, r), inputs)


@pytest.mark.parametrize("constant", [False, True])
def test_offsets_learn_from_everything_but_a_constant_map(constant):
    module = DeformableCrossAttention2D(8, 4, 2, "learned").double()
    maps = torch.ones(1, 8, 8, 16).double() if constant else torch.randn(1, 8, 8, 16).double()
    reference = torch.full((1, 3, 2), 0.5).double() + torch.rand(1, 3, 2).double() * 0.05  # every point well inside
    read(module, torch.randn(1, 3, 8).double(), maps, reference).pow(2).sum().backward()
    largest = module.sampling_offsets.bias.grad.abs().max()
    assert largest == 0 if constant else largest > 1e-3


# -- start -----------------------------------------------------------------------------------------


def test_ring_by_hand():
    ring = ring_offsets(8, 2)
    first = torch.tensor([[1.0, 0], [1, 1], [0, 1], [-1, 1], [-1, 0], [-1, -1], [0, -1], [1, -1]])
    torch.testing.assert_close(ring[:, 0], first)
    torch.testing.assert_close(ring[:, 1], 2 * first)
    fitted = ring_offsets(8, 4, (4, 32))  # four points on four rows: halved in y, whole in x
    torch.testing.assert_close(fitted, ring_offsets(8, 4) * torch.tensor([1.0, 0.5]))
    assert fitted[..., 1].abs().max() == 2 and fitted[..., 0].abs().max() == 4
    torch.testing.assert_close(ring_offsets(8, 4, (8, 32)), ring_offsets(8, 4))


@pytest.mark.parametrize("mode", MODES)
def test_starts_survive_construction_and_a_blanket_visitor(mode):
    decoder = build_decoder({**TINY, "ref_mode": mode})
    for visited in (False, True):
        if visited:
            decoder.apply(init_svtr)
        for layer in decoder.layers:
            cross = layer.cross_attn
            want = ring_offsets(4, 3, (4, 8)).flatten()
            torch.testing.assert_close(cross.sampling_offsets.bias, want, rtol=0, atol=0)
            for zero in (cross.sampling_offsets.weight, cross.attention_weights.weight, cross.attention_weights.bias):
                assert zero.abs().max() == 0
            bound = math.sqrt(6 / (16 + 16))
            assert 0.8 * bound < cross.value_proj.weight.abs().max() <= bound
    assert not flagged_names(decoder) or mode == "reading"


def test_literal_ring_on_request():
    decoder = build_decoder({**TINY, "ring_fit": False})
    torch.testing.assert_close(decoder.layers[0].cross_attn.sampling_offsets.bias, ring_offsets(4, 3).flatten())


# -- reference points ------------------------------------------------------------------------------


def memory_of(reference, maps):
    return Memory(maps.unflatten(1, (1, -1)), reference.keys(tokens(maps)))


def test_reading_starts_left_to_right_at_half_the_height():
    reference = ReferencePoints(8, "reading", 7)
    maps = torch.randn(2, 8, 3, 5)
    points = reference(torch.randn(2, 7, 8), memory_of(reference, maps))
    want = torch.stack(((torch.arange(7) + 0.5) / 7, torch.full((7,), 0.5)), -1)
    torch.testing.assert_close(points, want.expand(2, -1, -1))
    torch.testing.assert_close(reference(torch.randn(2, 2, 8), memory_of(reference, maps), start=4), points[:, 4:6])
    assert flagged_names(reference) == {"ref_point_prior"}


def test_soft_argmax_finds_the_pixel_that_answers():
    reference = ReferencePoints(2, "soft_argmax", 7)
    with torch.no_grad():
        for layer in (reference.ref_point_query, reference.ref_point_key):
            layer.weight.zero_()
            layer.weight[0, 0] = 100.0
    maps = torch.zeros(1, 2, 3, 5)
    maps[0, 0, 2, 1] = 1.0
    points = reference(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), memory_of(reference, maps))
    torch.testing.assert_close(points[0, 0], torch.tensor([1.5 / 5, 2.5 / 3]))
    torch.testing.assert_close(points[0, 1], torch.tensor([0.5, 0.5]))  # no answer: the centre


def test_learned_starts_from_the_query_alone():
    reference = ReferencePoints(8, "learned", 7)
    query = torch.randn(2, 3, 8)
    points = [reference(query, memory_of(reference, torch.randn(2, 8, 3, 5))) for _ in range(2)]
    assert torch.equal(*points) and points[0].std(1).min() > 1e-3


def test_iterative_moves_the_point_of_the_layer_before():
    decoder = build_decoder({**TINY, "ref_mode": "iterative"})
    assert [layer.cross_attn.reference.mode for layer in decoder.layers] == ["soft_argmax", "refine"]
    reference = decoder.layers[1].cross_attn.reference
    maps, before = torch.randn(2, 16, 3, 5), torch.rand(2, 3, 2, requires_grad=True)
    points = reference(torch.randn(2, 3, 16), memory_of(reference, maps), before=before)
    torch.testing.assert_close(points, before)  # a step of nothing at the start
    assert torch.autograd.grad(points.sum(), before, allow_unused=True) == (None,)


def test_a_text_longer_than_the_prior_is_refused():
    decoder = build_decoder({**TINY, "ref_mode": "reading", "max_len": 3})
    label = torch.tensor([[11, 1, 2, 3, 4, 0]])
    with pytest.raises(ConfigError, match=r"Set Decoder\.max_len"):
        decoder(torch.randn(1, 16, 4, 8), data=[label, torch.tensor([4])])


# -- the decoder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_later_tokens_do_not_change_earlier_steps(mode):
    decoder = build_decoder({**TINY, "ref_mode": mode}).double()
    memories = decoder.memories(torch.randn(2, 16, 4, 8).double())
    ids = torch.tensor([[11, 1, 2, 3, 4], [11, 5, 6, 7, 8]])
    other = ids.clone()
    other[:, 3:] = torch.tensor([9, 1])
    one, two = decoder.logits(ids, memories), decoder.logits(other, memories)
    torch.testing.assert_close(one[:, :3], two[:, :3], rtol=0, atol=1e-12)
    assert (one[:, 3:] - two[:, 3:]).abs().min(-1).values.max() > 1e-6


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_cached_reading_is_full_recomputation(mode, norm_first):
    decoder = build_decoder({**TINY, "ref_mode": mode, "norm_first": norm_first}).double().eval()
    maps = torch.randn(3, 16, 4, 8).double()
    with torch.no_grad():
        decoder.tgt_word_prj.bias[0] = -5.0  # late ends
        cached = decoder(maps)
        ids, memories = torch.full((3, 1), decoder.bos), decoder.memories(maps)
        for step in range(cached.shape[1]):
            probabilities = decoder.logits(ids, memories)[:, -1].softmax(-1)
            torch.testing.assert_close(cached[:, step], probabilities, rtol=0, atol=1e-10)
            ids = torch.cat((ids, probabilities.argmax(-1, keepdim=True)), 1)
    assert cached.shape == (3, 7, 11)  # six characters and the end


def test_padding_behind_a_text_has_no_say():
    decoder = build_decoder(TINY)
    maps = torch.randn(2, 16, 4, 8)
    label = torch.tensor([[11, 1, 2, 0, 12, 12], [11, 3, 4, 5, 6, 0]])
    both = decoder(maps, data=[label, torch.tensor([2, 4])])
    alone = decoder(maps[:1], data=[label[:1], torch.tensor([2])])
    assert both.shape == (2, 5, 11) and alone.shape == (1, 3, 11)
    torch.testing.assert_close(both[:1, :3], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "change, match",
    [({"n_head": 3}, "3 heads"), ({"ref_mode": "argmax"}, "soft_argmax"), ({"offset_init": "x"}, "ring")],
)
def test_bad_settings_are_refused(change, match):
    with pytest.raises(ConfigError, match=match):
        build_decoder({**TINY, **change})


def test_training_without_labels_is_refused():
    with pytest.raises(ConfigError, match="label and length"):
        build_decoder(TINY)(torch.randn(1, 16, 4, 8))


def test_projection_and_the_seeds_names():
    decoder = build_decoder({**TINY, "d_embedding": 24})
    assert isinstance(decoder.proj, nn.Conv2d) and decoder.tgt_word_prj.in_features == 24
    assert isinstance(build_decoder({**TINY, "d_model": 16}).proj, nn.Identity)


def test_points_stay_float32_under_autocast():
    decoder = build_decoder(TINY).eval()
    maps = torch.randn(2, 16, 4, 8)
    cross, query = decoder.layers[0].cross_attn, torch.randn(2, 3, 16)
    with torch.autocast("cpu", torch.bfloat16):
        memory = cross.memory(tokens(maps), (4, 8))
        read, points = cross(query.bfloat16(), memory)
    assert points.dtype == torch.float32 and memory.keys.dtype == torch.float32
    exact = cross(query.bfloat16().float(), cross.memory(tokens(maps), (4, 8)))
    torch.testing.assert_close(points, exact[1], rtol=0, atol=1e-6)
    assert (read.float() - exact[0]).abs().max() < 0.05


def test_it_guides_ctc():
    architecture = {
        "Encoder": {"name": "True2DEncoder", "d_model": 32, "n_layers": 1, "n_head": 4, "d_inner": 32},
        "Decoder": {
            "name": "GTCDecoder", "infer_gtc": True, "detach": False, "out_channels": [13, 11],
            "gtc_decoder": {"name": "True2DDecoder", "n_layers": 1, "n_head": 4, "max_len": 6},
            "ctc_decoder": {"name": "RCTCDecoder"},
        },
    }  # fmt: skip
    model = build_model(architecture)
    label = [torch.tensor([[11, 1, 2, 0]]), torch.tensor([2]), torch.tensor([[1, 2, 0]]), torch.tensor([2])]
    out = model(torch.randn(1, 3, 32, 64), data=label)
    assert out["gtc_pred"].shape == (1, 3, 11) and out["ctc_pred"].shape == (1, 16, 11)


def test_points_and_weights_are_told_to_a_listener():
    decoder = build_decoder({**TINY, "n_layers": 1}).eval()
    told = {}
    for module in decoder.modules():
        module._listener = lambda module, key, tensor: told.setdefault((type(module).__name__, key), tensor)
    decoder.logits(torch.tensor([[11, 1, 2]] * 2), decoder.memories(torch.randn(2, 16, 4, 8)))
    read = "DeformableCrossAttention2D"
    assert told[read, "loc"].shape == (2, 4, 3, 3, 2) and told[read, "offset"].shape == (2, 3, 4, 3, 2)
    assert told[read, "ref"].shape == (2, 3, 2) and told[read, "attn"].shape == (2, 4, 3, 3)
    scores = told["ReferencePoints", "attn"]
    assert scores.shape == (2, 3, 4, 8)
    torch.testing.assert_close(scores.sum((2, 3)), torch.ones(2, 3))
    loc = told[read, "ref"][:, None, :, None] + told[read, "offset"].transpose(1, 2) / torch.tensor([8.0, 4.0])
    torch.testing.assert_close(told[read, "loc"], loc)


def test_a_diagnosis_sees_points_far_outside_and_one_hot_weights():
    """The two extremes of what is told: every point outside the map, and all the weight on one point."""
    cross = plain(dim=4, heads=2, points=3)
    with torch.no_grad():
        cross.sampling_offsets.bias.view(2, 3, 2)[..., 0] = 10 * 8.0  # ten map widths to the right
        cross.attention_weights.bias.view(2, 3)[:] = torch.tensor([1e4, 0.0, 0.0])
    told = {}
    cross._listener = lambda module, key, tensor: told.setdefault(key, tensor)
    out = read(cross, torch.zeros(1, 5, 4).double(), torch.randn(1, 4, 4, 8).double(), torch.rand(1, 5, 2).double())
    outside = ((told["loc"] < 0) | (told["loc"] > 1)).any(-1)
    entropy = -torch.xlogy(told["attn"], told["attn"]).sum(-1) / math.log(3)
    assert outside.all() and entropy.abs().max() == 0 and out.abs().max() == 0
