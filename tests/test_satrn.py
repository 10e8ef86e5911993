"""SATRN's encoder against stored reference numbers, its position code and its stems."""

import pytest
import torch
from golden_check import check_module, load_cases
from torch import nn

from openrec.errors import ConfigError
from openrec.modeling import BaseRecognizer, build_model
from openrec.modeling.decoders import build_decoder
from openrec.modeling.encoders import build_encoder, satrn
from openrec.modeling.encoders.stems import build_stem, map_size

CASES = load_cases("index_satrn.json")
TINY = {"name": "SATRNEncoder", "d_model": 16, "n_layers": 2, "n_head": 4, "d_inner": 24, "dropout": 0.0}


def construct(case):
    args = {k: v for k, v in case["args"].items() if k != "valid_ratios"}
    stem = {"stem": "none"} if case["target"] == "SATRNEncoder" else {}
    return getattr(satrn, case["target"])(**args, **stem)


def call(case):
    if case["target"] == "SATRNEncoder":
        ratios = [{"valid_ratio": r} for r in case["args"]["valid_ratios"]]
        return lambda module, inputs, run: {"out": module(inputs["feat"], ratios)}
    if case["target"] == "SATRNEncoderLayer":
        return lambda module, inputs, run: {"out": module(inputs["x"], 4, 11, inputs["mask"])}
    return None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_reference(case, dtype):
    check_module(case, lambda: construct(case), dtype, call(case))


def test_position_code_with_open_gates_is_the_sum_of_two_sinusoids():
    code = satrn.Adaptive2DPositionalEncoding(6, 9, 9, dropout=0.0).double()
    for gate in (code.h_scale, code.w_scale):
        nn.init.zeros_(gate[2].weight)
        nn.init.constant_(gate[2].bias, 50.0)  # sigmoid: 1
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)

    def sinusoid(position):
        angle = position / torch.tensor(
            [1.0, 1.0, 10000 ** (2 / 6), 10000 ** (2 / 6), 10000 ** (4 / 6), 10000 ** (4 / 6)]
        )
        return torch.where(torch.arange(6) % 2 == 0, angle.sin(), angle.cos())

    want = x.clone()
    for row in range(3):
        for column in range(5):
            want[:, :, row, column] += sinusoid(row) + sinusoid(column)
    torch.testing.assert_close(code(x), want, rtol=0, atol=1e-6)


def test_gates_read_the_mean_of_the_map():
    code = satrn.Adaptive2DPositionalEncoding(8, 9, 9, dropout=0.0).eval()
    x = torch.randn(1, 8, 3, 5)
    shuffled = x.flatten(2)[:, :, torch.randperm(15)].view(1, 8, 3, 5)
    torch.testing.assert_close(code(x) - x, code(shuffled) - shuffled, rtol=0, atol=1e-6)


@pytest.mark.parametrize("h, w", [(1, 1), (4, 11), (3, 2)])
def test_feed_forward_keeps_the_size_and_never_subtracts(h, w):
    out = satrn.LocalityAwareFeedforward(8, 12)(torch.randn(2, 8, h, w))
    assert out.shape == (2, 8, h, w) and (out >= 0).all()


def test_parameters_of_one_layer():
    d, inner = 512, 2048
    layer = satrn.SATRNEncoderLayer(d, inner, 8, 64, 64)
    want = 4 * d * d + 2 * (2 * d) + (d * inner + 2 * inner) + (9 * inner + 2 * inner) + (inner * d + 2 * d)
    assert sum(p.numel() for p in layer.parameters()) == want == 3175424


def test_map_is_the_sequence_row_by_row():
    torch.manual_seed(0)
    encoder = build_encoder(TINY).eval()
    x = torch.randn(2, 3, 16, 24)
    tokens = encoder(x)
    encoder.feat2d = True
    assert tokens.shape == (2, 24, 16) and torch.equal(encoder(x)[:, :, 1, 2], tokens[:, 1 * 6 + 2])
    assert (build_encoder(TINY).out_rank, build_encoder({**TINY, "feat2d": True}).out_rank) == (3, 4)


def test_ratios_hide_the_right_columns():
    encoder = build_encoder({**TINY, "stem": "none", "n_layers": 1}).eval()
    encoder.position_enc = nn.Identity()
    encoder.layer_stack[0].feed_forward = nn.Identity()  # attention alone mixes positions
    x = torch.randn(1, 16, 3, 8)
    changed = x.clone()
    changed[..., 5:] += 1  # behind ceil(8 * 0.6) = 5 columns
    one, other = (encoder(v, [0.6]).view(1, 3, 8, 16) for v in (x, changed))
    assert torch.equal(one[:, :, :5], other[:, :, :5])
    assert not torch.allclose(encoder(x).view(1, 3, 8, 16)[:, :, :5], one[:, :, :5])


def test_images_do_not_mix():
    encoder = build_encoder(TINY).eval()
    x = torch.randn(3, 3, 32, 64)
    torch.testing.assert_close(encoder(x)[1:2], encoder(x[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem", ["shallow", "pope", "resnet45"])
@pytest.mark.parametrize("size", [(32, 128), (30, 126), (5, 9)])
def test_stems_leave_a_quarter(stem, size):
    module = build_stem(stem, 3, 16)
    out = module(torch.randn(2, 3, *size))
    assert out.shape == (2, 16, *map_size(size))
    for conv in (m for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)):
        assert 0.5 < conv.weight.std() / (2 / (9 * conv.out_channels)) ** 0.5 < 1.5  # Kaiming, fan-out


def test_an_image_larger_than_the_positions_is_refused():
    with pytest.raises(ConfigError, match=r"Set Encoder\.n_position: 128"):
        build_encoder({**TINY, "max_sz": [32, 512]})
    encoder = build_encoder({**TINY, "max_sz": [16, 32], "n_position": 8})
    with pytest.raises(ValueError, match=r"4x9, larger than the position table 8x8: raise Encoder\.n_position"):
        encoder(torch.zeros(1, 3, 16, 36))
    on_maps = build_encoder({**TINY, "stem": "none", "n_position": 11})  # which images those come from is not known
    assert on_maps(torch.zeros(1, 16, 4, 11)).shape == (1, 44, 16)


def test_a_mask_hides_keys_from_all_queries_or_from_each_its_own():
    torch.manual_seed(0)
    attention, x = satrn.MultiHeadAttention(4, 16, 4, 4).eval(), torch.randn(2, 5, 16)
    seen = torch.rand(2, 5) < 0.6
    seen[:, 0] = True
    torch.testing.assert_close(attention(x, seen), attention(x, seen[:, None].expand(-1, 5, -1)))
    causal = torch.ones(5, 5).tril().bool().expand(2, -1, -1)
    torch.testing.assert_close(attention(x, causal)[:, :2], attention(x[:, :2], causal[:, :2, :2]))


@pytest.mark.parametrize("change, match", [({"n_head": 5}, "5 heads"), ({"stem": "resnet"}, "resnet45")])
def test_bad_settings_are_refused(change, match):
    with pytest.raises(ConfigError, match=match):
        build_encoder({**TINY, **change})


def test_a_sequence_cannot_feed_true2d():
    decoder = build_decoder({"name": "True2DDecoder", "in_channels": 16, "out_channels": 13, "n_head": 4})
    with pytest.raises(ConfigError, match=r"Set Encoder\.feat2d: True"):
        BaseRecognizer(encoder=build_encoder(TINY), decoder=decoder)


def test_satrn_reads():
    decoder = {"name": "NRTRDecoder", "num_encoder_layers": 0, "num_decoder_layers": 1, "nhead": 4, "max_len": 5}
    model = build_model({"Encoder": TINY, "Decoder": {**decoder, "norm_first": True, "out_channels": 13}})
    label = torch.tensor([[11, 1, 2, 0, 12], [11, 3, 4, 5, 0]])
    logits = model(torch.randn(2, 3, 32, 64), data=[label, torch.tensor([2, 3])])
    assert logits.shape == (2, 4, 11)
    with torch.no_grad():
        out = model.eval()(torch.randn(2, 3, 32, 64))
    torch.testing.assert_close(out.sum(-1), torch.ones(2, out.shape[1]))


def test_dropout_reaches_attention_and_positions():
    encoder = build_encoder({**TINY, "dropout": 0.3})
    assert encoder.position_enc.dropout.p == 0.3
    assert [layer.attn.dropout for layer in encoder.layer_stack] == [0.3, 0.3]
    assert [layer.attn.proj_drop.p for layer in encoder.layer_stack] == [0.3, 0.3]


def test_attention_is_told_to_a_listener():
    decoder = {"name": "NRTRDecoder", "num_encoder_layers": 0, "num_decoder_layers": 1, "nhead": 4, "max_len": 3}
    model = build_model({"Encoder": TINY, "Decoder": {**decoder, "norm_first": True, "out_channels": 13}}).eval()
    told = []
    for module in model.modules():
        module._listener = lambda module, key, tensor: told.append((type(module).__name__, key, tensor))
    out = model(torch.randn(2, 3, 32, 64))
    maps = [t for name, key, t in told if name == "Heads"]
    assert len(maps) == out.shape[1] and maps[0].shape == (2, 4, 1, 8 * 16)
    assert [t.shape for name, _, t in told if name == "MultiHeadAttention"] == [(2, 4, 128, 128)] * 2
    features = [(name, t.shape) for name, key, t in told if key == "feature"]
    assert features == [("ModuleList", (2, 16, 8, 16)), ("SATRNEncoder", (2, 128, 16))]
    for t in (t for _, key, t in told if key == "attn"):
        torch.testing.assert_close(t.sum(-1), torch.ones(t.shape[:-1]))
