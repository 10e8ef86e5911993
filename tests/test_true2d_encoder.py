"""True2D's self-attention: the bias table, windows, shifts and padding, each against an independent statement."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openrec.errors import ConfigError
from openrec.modeling import BaseRecognizer, build_model
from openrec.modeling.decoders import build_decoder
from openrec.modeling.encoders import build_encoder
from openrec.modeling.encoders.svtrv2_mixers import build_mixer
from openrec.modeling.encoders.true2d import RelativePositionBias, True2DAttention, True2DBlock, True2DEncoder
from openrec.modeling.layers import flagged_names, init_svtr

OFFERED = {"dim": 16, "num_heads": 2, "map_size": (4, 32)}
TINY = {"name": "True2DEncoder", "max_sz": [16, 32], "d_model": 16, "n_layers": 2, "n_head": 4, "d_inner": 24}


def table(module):
    return module.bias.relative_position_bias_table


# -- global attention ------------------------------------------------------------------------------


def test_without_bias_it_is_multihead_attention():
    ours = True2DAttention(16, 4, (3, 5)).double()
    nn.init.zeros_(table(ours))
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias.normal_())
        theirs.out_proj.weight.copy_(ours.proj.weight)
        theirs.out_proj.bias.copy_(ours.proj.bias.normal_())
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64, requires_grad=True)
    tokens = x.flatten(1, 2)
    out, want = ours(x).flatten(1, 2), theirs(tokens, tokens, tokens, need_weights=False)[0]
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
    upstream = torch.randn_like(out)
    pairs = [(x, x), (ours.qkv.weight, theirs.in_proj_weight), (ours.proj.weight, theirs.out_proj.weight)]
    got = torch.autograd.grad((out * upstream).sum(), [a for a, _ in pairs])
    for a, b in zip(got, torch.autograd.grad((want * upstream).sum(), [b for _, b in pairs])):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_with_bias_it_is_the_formula():
    module = True2DAttention(8, 2, (4, 6)).double()
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    q, k, v = module.qkv(x).view(2, 15, 3, 2, 4).permute(2, 0, 3, 1, 4)
    scores = torch.zeros(2, 2, 15, 15, dtype=torch.float64)
    for i in range(15):
        for j in range(15):
            (yi, xi), (yj, xj) = divmod(i, 5), divmod(j, 5)
            bias = table(module)[:, yi - yj + 3, xi - xj + 5]
            scores[:, :, i, j] = (q[:, :, i] * k[:, :, j]).sum(-1) / math.sqrt(4) + bias
    want = module.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 3, 5, 8))
    torch.testing.assert_close(module(x), want, rtol=0, atol=1e-12)


def test_equal_displacements_share_one_number():
    bias = RelativePositionBias(2, (3, 4))
    gathered = bias(3, 4)
    assert gathered.shape == (2, 12, 12)
    seen = {}
    for i in range(12):
        for j in range(12):
            displacement = (i // 4 - j // 4, i % 4 - j % 4)
            first = seen.setdefault(displacement, (i, j))
            assert torch.equal(gathered[:, i, j], gathered[:, first[0], first[1]])
    assert len(seen) == 5 * 7


def test_index_of_a_3x4_map_by_hand():
    index = RelativePositionBias(1, (3, 4)).index(3, 4)
    assert index.min() == 0 and index.max() == 5 * 7 - 1
    # no displacement; one to the right; one to the left; one row down; from the last corner to the first; back
    assert [index[0, 0], index[1, 0], index[0, 1], index[4, 0], index[11, 0], index[0, 11]] == [17, 18, 16, 24, 34, 0]
    assert index[0].tolist() == [17, 16, 15, 14, 10, 9, 8, 7, 3, 2, 1, 0]


def test_a_smaller_map_has_a_subset_of_the_displacements():
    bias = RelativePositionBias(2, (4, 6))
    whole = bias(4, 6).view(2, 4, 6, 4, 6)
    torch.testing.assert_close(bias(2, 3), whole[:, :2, :3, :2, :3].reshape(2, 6, 6), rtol=0, atol=0)


def test_a_larger_map_is_refused():
    encoder = build_encoder(TINY)
    with pytest.raises(
        ValueError, match=r"4x9, larger than the table of relative positions, 4x8: raise Encoder\.max_sz"
    ):
        encoder(torch.zeros(1, 3, 16, 36))
    assert build_encoder({**TINY, "window_size": [4, 4]})(torch.zeros(1, 3, 16, 64)).shape == (1, 16, 4, 16)


def test_the_gradient_of_the_table_counts_pairs():
    bias = RelativePositionBias(1, (2, 3))
    bias(2, 3).sum().backward()
    rows, columns = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0])
    torch.testing.assert_close(bias.relative_position_bias_table.grad[0], torch.outer(rows, columns))


# -- windows ---------------------------------------------------------------------------------------


def reach(module, h, w):
    """Bool [h*w, h*w]: output i depends on input j."""
    x = torch.randn(1, h, w, module.proj.in_features, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: module(v).sum(-1).flatten(), x)
    return jacobian.abs().sum(-1).view(h * w, h * w) > 0


def brute_force(h, w, window, shift):
    """The same from the definition, position by position."""
    size = [min(window[0], h), min(window[1], w)]
    roll = [s // 2 if shift and s < m else 0 for s, m in zip(size, (h, w))]
    padded = [-(-m // s) * s for m, s in zip((h, w), size)]
    homes = []
    for position in range(h * w):
        y, x = divmod(position, w)
        rolled = [(y - roll[0]) % padded[0], (x - roll[1]) % padded[1]]
        homes.append((rolled[0] // size[0], rolled[1] // size[1], y < roll[0], x < roll[1]))
    return torch.tensor([[a == b for b in homes] for a in homes])


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(
    "h, w, window", [(4, 8, (2, 4)), (4, 8, (4, 4)), (3, 7, (2, 3)), (5, 6, (4, 2)), (2, 9, (8, 4))]
)
def test_who_sees_whom(h, w, window, shift):
    module = True2DAttention(4, 2, (h, w), window, shift).double()
    assert torch.equal(reach(module, h, w), brute_force(h, w, window, shift))


def test_shifted_windows_connect_what_windows_cut():
    h, w, window = 4, 8, (4, 4)
    plain, shifted = brute_force(h, w, window, False), brute_force(h, w, window, True)
    assert not plain[3, 4] and shifted[3, 4]  # neighbours on both sides of a border
    assert not shifted[0, 7]  # the two ends of a row, which the roll brings into one window


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("window", [(3, 5), (4, 9)])
def test_a_window_as_large_as_the_map_is_the_whole_map(window, shift):
    small, whole = True2DAttention(8, 2, window, window, shift), True2DAttention(8, 2, window)
    small.load_state_dict(whole.state_dict())
    x = torch.randn(2, 3, 5, 8)
    assert torch.equal(small(x), whole(x))


@pytest.mark.parametrize("shift", [False, True])
def test_padding_never_contributes(shift, monkeypatch):
    module = True2DAttention(8, 2, (5, 7), (4, 4), shift)
    x = torch.randn(2, 5, 7, 8)
    want = module(x)
    pad = F.pad
    monkeypatch.setattr(F, "pad", lambda x, sides: pad(x, sides, value=1e4))
    assert torch.equal(module(x), want) and torch.isfinite(want).all()


def test_one_window_is_attention_on_the_crop():
    module = True2DAttention(8, 2, (4, 8), (4, 4))
    crop = True2DAttention(8, 2, (4, 4))
    crop.load_state_dict(module.state_dict())
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(module(x)[:, :, 4:], crop(x[:, :, 4:]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("window", [0, [2, 3, 4], [0, 4]])
def test_impossible_windows_are_refused(window):
    with pytest.raises(ConfigError, match="window_size must be"):
        build_encoder({**TINY, "window_size": window})


# -- block and encoder -----------------------------------------------------------------------------


@pytest.mark.parametrize("ffn", ["mlp", "locality"])
@pytest.mark.parametrize("window", [None, 4, [2, 8]])
def test_encoder_keeps_images_apart(ffn, window):
    encoder = build_encoder({**TINY, "ffn": ffn, "window_size": window, "dropout": 0.0}).eval()
    x = torch.randn(3, 3, 16, 32)
    out = encoder(x)
    assert out.shape == (3, 16, 4, 8) and encoder.out_rank == 4 and encoder.out_channels == 16
    torch.testing.assert_close(encoder(x[1:2]), out[1:2], rtol=1e-4, atol=1e-5)


def test_every_second_layer_shifts():
    encoder = True2DEncoder(max_sz=[16, 32], d_model=16, n_layers=4, n_head=2, d_inner=16, window_size=4)
    assert [layer.attn.shift for layer in encoder.layers] == [False, True, False, True]
    still = build_encoder({**TINY, "window_size": 4, "shift_windows": False})
    assert not any(layer.attn.shift for layer in still.layers)


@pytest.mark.parametrize("abs_pos", [False, True])
def test_a_constant_map_shows_positions_only_with_abs_pos(abs_pos):
    encoder = build_encoder({**TINY, "stem": "none", "max_sz": [4, 8], "abs_pos": abs_pos}).eval()
    spread = encoder(torch.ones(1, 16, 4, 8)).std((2, 3)).max()
    assert spread > 0.05 if abs_pos else spread < 1e-6


def test_block_is_pre_norm_and_residual():
    block = True2DBlock(8, 2, (4, 6), mlp_ratio=2.0)
    nn.init.zeros_(block.attn.proj.weight)
    nn.init.zeros_(block.attn.proj.bias)
    nn.init.zeros_(block.mlp.fc2.weight)
    nn.init.zeros_(block.mlp.fc2.bias)
    x = torch.randn(2, 8, 4, 6)
    assert torch.equal(block(x), x)


def test_probabilities_reach_the_layers():
    encoder = build_encoder({**TINY, "dropout": 0.2, "drop_path_rate": 0.1})
    first, last = encoder.layers
    assert [m.p for m in last.modules() if isinstance(m, nn.Dropout)] == [0.2] * 3
    assert isinstance(first.drop_path, nn.Identity) and last.drop_path.p == 0.1


def test_table_keeps_its_start_and_is_not_decayed():
    encoder = build_encoder(TINY)
    name = "layers.0.attn.bias.relative_position_bias_table"
    assert name in flagged_names(encoder, "_no_reinit") and name in flagged_names(encoder, "_no_weight_decay")
    before = table(encoder.layers[0].attn).clone()
    assert 0.01 < before.std() < 0.03
    encoder.apply(init_svtr)
    assert torch.equal(table(encoder.layers[0].attn), before)


def test_output_as_tokens_and_bad_settings():
    x = torch.randn(2, 3, 16, 32)
    encoder = build_encoder({**TINY, "out_rank": 3, "dropout": 0.0}).eval()
    tokens = encoder(x)
    encoder.out_rank = 4
    assert torch.equal(encoder(x)[:, :, 2, 5], tokens[:, 2 * 8 + 5])
    for change, match in (({"n_head": 3}, "3 heads"), ({"out_rank": 2}, "out_rank"), ({"ffn": "conv"}, "locality")):
        with pytest.raises(ConfigError, match=match):
            build_encoder({**TINY, **change})
    decoder = build_decoder({"name": "True2DDecoder", "in_channels": 16, "out_channels": 13, "n_head": 4})
    with pytest.raises(ConfigError, match="needs a 2-D feature map"):
        BaseRecognizer(encoder=encoder.__class__(out_rank=3, d_model=16, n_head=4), decoder=decoder)


def test_the_four_combinations_build():
    satrn = {"name": "SATRNEncoder", "d_model": 16, "n_layers": 1, "n_head": 4, "d_inner": 24, "feat2d": True}
    nrtr = {"name": "NRTRDecoder", "num_encoder_layers": 0, "num_decoder_layers": 1, "nhead": 4, "norm_first": True}
    true2d = {"name": "True2DDecoder", "n_layers": 1, "n_head": 4}
    label = [torch.tensor([[11, 1, 2, 0]]), torch.tensor([2])]
    for encoder in (satrn, {**TINY, "abs_pos": True}):
        for decoder in (nrtr, true2d):
            model = build_model({"Encoder": encoder, "Decoder": {**decoder, "out_channels": 13}})
            assert model(torch.randn(1, 3, 16, 32), data=label).shape == (1, 3, 11)


def test_bfloat16_autocast():
    encoder = build_encoder({**TINY, "window_size": [4, 4], "dropout": 0.0}).eval()
    x = torch.randn(2, 3, 16, 32)
    want = encoder(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = encoder(x)
    assert (got.float() - want).abs().max() < 0.1 * want.abs().max()


# -- mixer of the SVTRv2 skeleton --------------------------------------------------------------------


def skeleton(mixer, depths=(1, 2, 2), **mixer_cfg):
    stages = {"dims": [16, 16, 32], "depths": depths, "num_heads": [2, 2, 2], "max_sz": [32, 96]}
    return build_encoder(
        {
            "name": "SVTRv2Mamba",
            **stages,
            "mixer": mixer,
            "mixer_cfg": mixer_cfg,
            "use_pos_embed": False,
            "final_norm": True,
        }
    )


def test_as_mixer_it_knows_the_map_of_its_stage():
    encoder = skeleton(["Conv", "Conv, True2D", "True2D, True2DShifted"], True2DShifted={"window_size": [4, 8]})
    parts = [m for m in encoder.modules() if isinstance(m, True2DAttention)]
    assert [m.bias.max_size for m in parts] == [(8, 24), (4, 24), (4, 8)]
    assert [m.shift for m in parts] == [False, False, True]
    assert encoder(torch.randn(2, 3, 32, 96)).shape == (2, 32, 4, 24) and encoder.final_norm.norm.weight.numel() == 32
    names = flagged_names(encoder, "_no_reinit")
    assert len([n for n in names if n.endswith("relative_position_bias_table")]) == 3
    for m in parts:
        assert 0.01 < table(m).std() < 0.03
    with pytest.raises(ValueError, match=r"raise Encoder\.max_sz"):
        encoder(torch.zeros(1, 3, 32, 128))


def test_as_mixer_it_takes_window_and_shift():
    encoder = skeleton(["Conv", "Conv*2", "True2D*2"], True2D={"window_size": 4, "shift": True})
    assert [m.shift for m in encoder.modules() if isinstance(m, True2DAttention)] == [False, True]
    mixed = ["Conv", "Conv*2", "True2D, Conv, True2D"]
    between = skeleton(mixed, (1, 2, 3), True2D={"window_size": 4, "shift": True})
    assert [m.shift for m in between.modules() if isinstance(m, True2DAttention)] == [False, True]
    with pytest.raises(ConfigError, match="window_size"):
        skeleton(["Conv", "Conv*2", "True2D*2"], True2D={"windowsize": 4})


def test_shifted_windows_mix():
    """What a cell knows of grows beyond its window: every second block moves the windows."""
    blocks = [build_mixer("True2D", {**OFFERED, "index": i}, {"window_size": [4, 4], "shift": True}) for i in range(4)]
    x = torch.randn(1, 16, 4, 32, requires_grad=True)
    y = x
    for block in blocks:
        y = block.eval()(y)
    y[0, :, 2, 10].sum().backward()
    columns = x.grad.abs().sum((0, 1, 2)).nonzero().flatten().tolist()
    assert min(columns) < 8 and max(columns) > 11  # its own window: columns 8 to 11
    always = build_mixer("True2DShifted", {**OFFERED, "index": 0}, {"window_size": [4, 4]})
    assert always.attn.shift


def test_as_mixer_it_keeps_the_map():
    with pytest.raises(ConfigError, match="use FGlobalRe2D there to keep 2-D"):
        skeleton(["Conv", "FGlobal, True2D", "True2D*2"])
