"""Decoders against stored reference numbers, against each other, and at their edges."""

import math
from pathlib import Path

import pytest
import torch
from golden_check import check_module, load_cases
from reference_numbers import digest, fill, statistics, tensor

from openrec import registry
from openrec.charset import Charset
from openrec.errors import ConfigError
from openrec.modeling.decoders import build_decoder
from openrec.preprocess.label_encode import ARLabelEncode, SMTRLabelEncode

CASES = {k: c for k, c in load_cases("index_heads.json").items() if c["kind"] == "module"}
LABELS = ("label", "label_subs", "label_next", "length_subs", "label_subs_pre", "label_next_pre", "length_subs_pre")
ENGLISH = Charset.load(str(Path(__file__).parents[1] / "tools/utils/EN_symbol_dict.txt"))
SMTR = {"name": "SMTRDecoder", "in_channels": 32, "out_channels": 17, "num_layer": 1, "ds": True}
NRTR = {"name": "NRTRDecoder", "in_channels": 32, "out_channels": 15, "num_encoder_layers": 1, "num_decoder_layers": 2}


def call(module, inputs, run):
    """Outputs of a decoder by the names of the stored arrays."""
    x = inputs["x"]
    data = [inputs[k] for k in (*LABELS, "length") if k in inputs]
    out = module(x, data=data) if data else module(x)
    if isinstance(out, dict):
        guide = out["gtc_pred"]
        if isinstance(guide, list):
            return {"ctc_pred": out["ctc_pred"], "gtc_loss": guide[0]["loss"], "gtc_logits": guide[1]}
        return out
    if isinstance(out, list):
        return {"loss": out[0]["loss"], "logits": out[1]}
    return {"out0": out[0], "out1": out[1]} if isinstance(out, tuple) else {"out": out}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_equals_reference(case, dtype):
    check_module(case, lambda: build_decoder({"name": case["target"], **case["args"]}), dtype, call)


def labels(encoder, *texts):
    samples = [encoder({"label": text, "training": False}) for text in texts]
    keys = [k for k in (*LABELS, "length") if k in samples[0]]
    return [torch.stack([torch.from_numpy(s[k]) for s in samples]) for k in keys]


# -- published numbers of the forward pass ---------------------------------------------------------


def close(x, *expected):
    assert statistics(x) == pytest.approx(list(expected), rel=1e-6)


def test_smtr_published_numbers():
    m = fill(build_decoder({**SMTR, "in_channels": 96, "out_channels": 99, "num_layer": 2, "drop_path_rate": 0.0}))
    x = tensor(2, 20, 96, stream=5000)
    loss, logits = m.train()(x, data=labels(SMTRLabelEncode(25, charset=ENGLISH), "abc", "hello"))
    assert loss["loss"].item() == pytest.approx(5.080527213)
    close(logits, 0.06049174, 0.98495497, -0.74888741, -1.276383)
    m.eval()
    out = m(x)
    close(out, 0.010416667, 0.011427923, 0.0023162398, 0.0040417878)
    assert out.shape == (2, 27, 96) and out[0].argmax(-1)[:8].tolist() == [69, 52, 52, 52, 52, 52, 26, 52]
    m.next_mode = False
    close(m(x), 0.010416667, 0.01198522, 0.0042740649, 0.0023022314)
    m.infer_aug = True
    out = m(tensor(3, 20, 96, stream=5001))
    assert out.shape == (1, 74, 96)
    close(out, 0.010416667, 0.01172634, 0.0024024065, 0.0026722098)


def test_nrtr_published_numbers():
    config = {**NRTR, "in_channels": 96, "out_channels": 97, "residual_dropout_rate": 0.0}
    m, x = fill(build_decoder(config)), tensor(2, 20, 96, stream=5000)
    out = m.eval()(x)
    assert out.shape == (2, 25, 95)
    close(out, 0.010526316, 0.010883695, 0.0059521002, 0.006733377)
    close(
        m.train()(x, data=labels(ARLabelEncode(25, charset=ENGLISH), "abc", "hello")),
        *(0.039482973, 0.97613721, -0.083023123, 0.34171265),
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            {"name": "NRTRDecoder", "out_channels": 97, "num_encoder_layers": 1, "num_decoder_layers": 1, "nhead": 12},
            "c33c0a6440a5b8e178c520b7ed63872dfeec4672696f678e535eac2c336d0344",
        ),
        (
            {
                "name": "CTCDecoder",
                "out_channels": 6625,
                "svtr_encoder": {"dims": 256, "hidden_dims": 256, "kernel_size": [1, 3], "use_guide": True},
            },
            "51da79001da655fa4201047f273e6e1273633a580d72264ca58fe578398c7a11",
        ),
    ],
    ids=["nrtr", "ctc"],
)
def test_published_state_dict_names(config, expected):
    assert digest(build_decoder({**config, "in_channels": 384})) == expected


# -- RCTC ------------------------------------------------------------------------------------------


def test_rctc_equals_keys_and_values_of_every_position():
    """The decoder forms neither; the definition does."""
    m = build_decoder({"name": "RCTCDecoder", "in_channels": 32, "out_channels": 7}).double()
    torch.nn.init.normal_(m.char_token)
    x = torch.randn(2, 32, 4, 6, dtype=torch.float64)
    rows = m.w_atten_block(x.permute(0, 2, 3, 1).reshape(8, 6, 32)).view(2, 4, 6, 32)
    keys, values = m.fc_kv(rows).chunk(2, -1)
    attention = (keys @ m.char_token.view(32)).softmax(1)
    torch.testing.assert_close(m.read(x), (attention[..., None] * values).sum(1))


def test_rctc_attention_can_be_watched():
    m = build_decoder({"name": "RCTCDecoder", "in_channels": 32, "out_channels": 7}).eval()
    seen = []
    m.row_softmax.register_forward_hook(lambda module, inputs, output: seen.append(output))
    m(torch.randn(2, 32, 4, 6))
    assert seen[0].shape == (2, 4, 6)
    torch.testing.assert_close(seen[0].sum(1), torch.ones(2, 6))


def test_rctc_width_of_heads():
    with pytest.raises(ConfigError, match="multiple of 32"):
        build_decoder({"name": "RCTCDecoder", "in_channels": 40, "out_channels": 7})


# -- SMTR ------------------------------------------------------------------------------------------


def test_smtr_table_of_prompts_changes_nothing():
    """A large batch looks its sub-strings up in a table; a small one embeds them one by one."""
    m = build_decoder({**SMTR, "drop_path_rate": 0.0}).double().train()
    encoder = SMTRLabelEncode(25, charset=Charset(tuple("abcdefghijkl")))
    texts = ["abc", "hellebak", "ab", "ldkbejaha"] * 4
    x, data = torch.randn(16, 5, 32, dtype=torch.float64), labels(encoder, *texts)
    (loss, logits), grown = m(x, data=data), build_decoder({**SMTR, "drop_path_rate": 0.0}).double().train()
    grown.load_state_dict(m.state_dict())
    grown.vocab = 10**6  # never worth a table
    other, same = grown(x, data=data)
    torch.testing.assert_close(loss["loss"], other["loss"])
    torch.testing.assert_close(logits, same)
    loss["loss"].backward()
    other["loss"].backward()
    for a, b in zip(m.parameters(), grown.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_smtr_stops_when_all_rows_have_ended():
    m = build_decoder({**SMTR, "max_len": 10}).eval()
    assert m(torch.randn(2, 5, 32)).shape[1] <= 12
    with torch.no_grad():
        m.ques1_head.bias[0] = 100.0
    assert m(torch.randn(2, 5, 32)).shape == (2, 1, 14)


@pytest.mark.parametrize("bi_attn", [False, True])
def test_smtr_long_text_with_an_immediate_end(bi_attn):
    m = build_decoder({**SMTR, "infer_aug": True, "bi_attn": bi_attn}).eval()
    with torch.no_grad():
        m.ques1_head.bias[0] = 100.0
    out = m(torch.randn(3, 5, 32))
    if bi_attn:
        assert [p.shape for p in out] == [(1, 0, 14)] * 2 and len(m.attn_maps) == 1
    else:
        assert out.shape == (1, 1, 14) and out.argmax(-1).item() == 0


def test_smtr_long_text_in_parts_is_the_same_reading():
    config = {**SMTR, "infer_aug": True, "max_len": 9}
    m, x = build_decoder(config).eval(), torch.randn(3, 5, 32)
    with torch.no_grad():
        m.ques1_head.bias[0] = -100.0  # never ends
    whole = m(x)
    assert not m.attn_maps  # nothing is kept unless asked for
    m.bi_attn = True
    parts = m(x)
    assert len(parts) == 3
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    assert m.attn_maps[0].shape == (2, 2, 1, 5)  # crops, heads, query, image tokens
    with pytest.raises(ConfigError, match="three crops"):
        m(torch.randn(2, 5, 32))


def test_smtr_positions():
    m = build_decoder({**SMTR, "pos2d": True, "max_size": [4, 8]})
    assert m.needs == "2d" and m.vis_pos_embed.shape == (1, 32, 4, 8)
    x = torch.randn(1, 32, 2, 6)
    before = m.eval()(x)
    assert before.shape[-1] == 14
    with torch.no_grad():
        m.vis_pos_embed[:, :, :2, :6].normal_()
    assert not torch.equal(before[:, 0], m(x)[:, 0])
    data = labels(SMTRLabelEncode(25, charset=Charset(tuple("abcdefghijkl"))), "abc")
    m.train()(x, data=data)[0]["loss"].backward()
    assert m.vis_pos_embed.grad.abs().sum() > 0
    for bad, message in ((torch.randn(1, 32, 5, 6), "max_size"), (torch.randn(1, 32, 2, 9), "max_size")):
        with pytest.raises(ConfigError, match=message):
            m(bad)
    with pytest.raises(ConfigError, match="vis_seq = 7"):
        build_decoder({**SMTR, "ds": False, "vis_seq": 7}).eval()(torch.randn(1, 6, 32))
    with pytest.raises(ConfigError, match="ds: True"):
        build_decoder({**SMTR, "ds": False, "pos2d": True})


def test_smtr_needs_its_labels():
    with pytest.raises(ConfigError, match="SMTRLabelEncode"):
        build_decoder(SMTR)(torch.randn(1, 5, 32), data=[torch.zeros(1, 5)])


# -- NRTR ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [False, True])
def test_nrtr_reads_what_teacher_forcing_gives(norm_first):
    """Step by step with kept keys and values, or all steps at once: the same probabilities."""
    config = {**NRTR, "residual_dropout_rate": 0.0, "max_len": 6, "norm_first": norm_first}
    m, x = build_decoder(config).double(), torch.randn(2, 7, 32, dtype=torch.float64)
    with torch.no_grad():
        m.tgt_word_prj.weight[0] = -m.tgt_word_prj.weight[1:].sum(0)
    steps = m.eval()(x)
    read = steps.argmax(-1)
    label = torch.cat((torch.full((2, 1), 13), read), 1)
    at_once = m.train()(x, data=[label, torch.tensor([steps.shape[1] - 1, 1])])
    torch.testing.assert_close(at_once.softmax(-1), steps)


def test_nrtr_norm_first_has_a_last_norm():
    m = build_decoder({**NRTR, "norm_first": True})
    assert {"encoder_norm.weight", "decoder_norm.weight"} <= set(m.state_dict())
    with pytest.raises(ConfigError, match="ARLabelEncode"):
        m(torch.randn(1, 5, 32))


# -- GTC and the rest ------------------------------------------------------------------------------


def gtc(guide, **extra):
    ctc = {"name": "RCTCDecoder"}
    config = {"name": "GTCDecoder", "in_channels": 32, "gtc_decoder": guide, "ctc_decoder": ctc, "infer_gtc": True}
    return build_decoder({**config, "out_channels": [15, 13], **extra})


def test_gtc_with_another_guide():
    guide = {"name": "NRTRDecoder", "num_encoder_layers": 0, "num_decoder_layers": 1}
    m, x = gtc(guide, detach=False), torch.randn(2, 32, 2, 6, requires_grad=True)
    data = labels(ARLabelEncode(25, charset=Charset(tuple("abcdefghijkl"))), "abc", "de")
    out = m.train()(x, data=data)
    assert out["gtc_pred"].shape == (2, 4, 13) and out["ctc_pred"].shape == (2, 6, 13)
    assert not hasattr(m, "no_weight_decay")  # as in OpenOCR: the guide's tokens are decayed
    assert gtc(guide, ctc_decoder={"name": "CTCDecoder"}).eval()(x)["ctc_pred"].shape == (2, 6, 13)


def test_gtc_refuses():
    guide = {"name": "NRTRDecoder", "num_decoder_layers": 1}
    deployed = gtc(guide, infer_gtc=False, out_channels=13)
    assert not any(k.startswith("gtc_decoder") for k in deployed.state_dict())
    assert deployed.eval()(torch.randn(1, 32, 2, 6)).shape == (1, 6, 13)
    with pytest.raises(ConfigError, match="infer_gtc: True"):
        deployed.train()(torch.randn(1, 32, 2, 6))
    for bad in ({"out_channels": 13}, {"infer_gtc": False}):
        with pytest.raises(ConfigError, match="out_channels"):
            gtc(guide, **bad)


def test_needs():
    ctc = {"name": "CTCDecoder", "in_channels": 64, "out_channels": 5}
    assert build_decoder(ctc).needs == "seq"
    assert build_decoder({**ctc, "svtr_encoder": {"dims": 16}}).needs == "2d"
    with pytest.raises(ConfigError, match="kernel_size"):
        build_decoder({**ctc, "svtr_encoder": {"kernel_sise": [1, 3]}})


@pytest.mark.parametrize(
    "config",
    [
        {"name": "RCTCDecoder", "in_channels": 32, "out_channels": 9},
        {"name": "CTCDecoder", "in_channels": 32, "out_channels": 9, "svtr_encoder": {"dims": 16}},
        SMTR,
        NRTR,
    ],
    ids=lambda c: c["name"],
)
def test_bfloat16_autocast(config):
    m = build_decoder(config)
    x = torch.randn(2, 32, 2, 8) if m.needs == "2d" else torch.randn(2, 16, 32)
    data = labels(SMTRLabelEncode(25, charset=Charset(tuple("abcdefghijkl"))), "abcabcf", "de")
    if config["name"] == "NRTRDecoder":
        data = [data[0].clamp(max=14), data[-1]]
    with torch.autocast("cpu", torch.bfloat16):
        out = m.train()(x, data=data)
        loss = out[0]["loss"] if isinstance(out, list) else out.float().square().mean()
        probabilities = m.eval()(x)
    loss.backward()
    assert math.isfinite(loss.item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())
    torch.testing.assert_close(probabilities.float().sum(-1), torch.ones(probabilities.shape[:2]), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("name", "options", "layer"),
    [("CTCDecoder", {}, "fc"), ("CTCDecoder", {"mid_channels": 8}, "fc2"), ("RCTCDecoder", {}, "fc")],
)
def test_weights_of_another_dictionary_keep_the_shared_characters(name, options, layer):
    theirs, ours = list("abcdefgh"), list("hxa")
    source, target = (
        registry.build(
            "decoder", {"name": name, **options}, "Decoder", in_channels=32, out_channels=1 + len(characters)
        )
        for characters in (theirs, ours)
    )
    given = {f"decoder.{key}": value for key, value in source.state_dict().items()}
    mapped = target.map_characters(given, theirs, ours, "decoder.")
    for part in ("weight", "bias"):
        old, new = given[f"decoder.{layer}.{part}"], mapped[f"decoder.{layer}.{part}"]
        own = target.state_dict()[f"{layer}.{part}"]
        assert torch.equal(new[[0, 1, 3]], old[[0, 8, 1]]) and torch.equal(new[2], own[2]) and len(new) == 4
    target.load_state_dict({key.removeprefix("decoder."): value for key, value in mapped.items()})
    # a head of another size than its dictionary is left to the report of shapes that differ
    assert target.map_characters(given, theirs[:3], ours, "decoder.") == given
