"""The recurrent frame and the soft read: reads, teacher forcing against decoding, padding, options, diagnosis."""

import math

import pytest
import torch

from openrec.charset import Charset
from openrec.errors import ConfigError
from openrec.losses import build_loss
from openrec.modeling import BaseRecognizer
from openrec.modeling.decoders import build_decoder
from openrec.modeling.decoders.rnn_attn import State, real_steps
from openrec.modeling.decoders.soft_attn_decoder import SoftRead
from openrec.postprocess.ar_postprocess import ARLabelDecode

CLASSES = 9  # end and 8 characters
EOS, BOS, PAD = 0, 9, 10
WIDTHS = {"hidden": 16, "attn_dim": 14, "embed_dim": 10}
SIZES = {"in_channels": 12, "out_channels": CLASSES + 2, **WIDTHS, "map_size": [3, 5]}
NAMES = ["SoftAttnDecoder", "HardAttnDecoder", "DRAWAttnDecoder"]


def build(name="SoftAttnDecoder", **options):
    torch.manual_seed(0)
    return build_decoder({"name": name, **SIZES, "max_len": 6, "dropout": 0.0, **options}).double()


def labels(*texts, width=8):
    rows = [[BOS, *text, EOS] + [PAD] * (width - len(text) - 2) for text in texts]
    return [torch.tensor(rows), torch.tensor([len(text) for text in texts])]


def image(batch=2, h=3, w=5):
    return torch.randn(batch, 12, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def read_of(**options):
    torch.manual_seed(0)
    return SoftRead(12, 16, 14, **options).double()


def state(batch=2, readings=1):
    return State(torch.randn(batch, readings, 16, dtype=torch.float64), None)


def test_uniform_scores_give_the_mean():
    read, x = read_of(), image()
    torch.nn.init.zeros_(read.attnfeat_embed.weight)
    look = read(state(), read.memory(x))
    torch.testing.assert_close(look.z[:, 0], x.mean((2, 3)))
    torch.testing.assert_close(look.weights, torch.full_like(look.weights, 1 / 15))


def test_concentrated_scores_give_one_cell():
    read, x = read_of(), image()
    memory = read.memory(x)
    keys = torch.full_like(memory.keys, -30.0)
    keys[:, 7] = 30.0  # row 1, column 2
    torch.nn.init.constant_(read.attnfeat_embed.weight, 100.0)
    torch.testing.assert_close(read(state(), memory._replace(keys=keys)).z[:, 0], x[:, :, 1, 2])


@pytest.mark.parametrize(
    "options",
    [{}, {"gate": True}, {"glimpses": 2}, {"location": True}, {"neigh": 3}],
    ids=lambda o: "".join(o) or "plain",
)
def test_soft_read_equals_the_formula_and_finite_differences(options):
    read, x = read_of(**options), image().requires_grad_()
    before = state(readings=2)
    if "location" in options:
        before = before._replace(seen=torch.rand(2, 2, 15, dtype=torch.float64))
    h = before.h.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, h: read(before._replace(h=h), read.memory(x)).z, (x, h))
    if not options:
        cells = x.flatten(2).transpose(1, 2)
        for b in range(2):
            for q in range(2):
                scores = [
                    read.attnfeat_embed((read.feat_embed(f) + read.hidden_embed(h[b, q])).tanh()) for f in cells[b]
                ]
                want = torch.cat(scores).softmax(0) @ cells[b]
                torch.testing.assert_close(read(before, read.memory(x)).z[b, q], want)


def test_attention_starts_small_and_unbiased():
    read = SoftRead(64, 256, 256)
    for layer in (read.hidden_embed, read.attnfeat_embed):
        assert 0.008 < float(layer.weight.detach().std()) < 0.012
    assert not read.hidden_embed.bias.any() and read.attnfeat_embed.bias is None


def test_the_frame_follows_the_order_of_the_figure():
    """The first look comes from the start state alone; the cell sees it with <s>; deep output sees all three."""
    decoder, x = build(cell="gru", pos2d=False), image(1)
    mean = x.mean((2, 3))
    h0 = decoder.init_h(mean).tanh()
    z = decoder.read(State(h0.unsqueeze(1), None), decoder.read.memory(x)).z[:, 0]
    word = decoder.embedding(torch.tensor([BOS]))
    h1 = decoder.cell(torch.cat((word, z), -1), h0)
    logits = decoder.classifier((decoder.out_state(h1) + decoder.out_seen(z) + word).tanh())
    torch.testing.assert_close(decoder.train()(x, data=labels([3]))[:, 0], logits)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("init_state", ["mean", "zero"])
def test_decoding_and_teacher_forcing_agree(name, cell, init_state):
    """The text that decoding chose, given as the truth, has the same probabilities."""
    options = {"semi_sampling_p": 0.0, "n_samples": 1, "baseline": "none"} if name == "HardAttnDecoder" else {}
    decoder, x = build(name, cell=cell, init_state=init_state, **options).eval(), image(4)
    with torch.no_grad():
        probabilities = decoder(x)
        best = probabilities.argmax(-1)
        tokens = torch.cat((torch.full((4, 1), BOS), best[:, :-1]), 1)
        placed = decoder.place(x)
        again = decoder.unroll(decoder.read.memory(placed), decoder.start(placed), tokens).logits[:, 0].softmax(-1)
    torch.testing.assert_close(again, probabilities)
    assert probabilities.shape[1] <= 7 and probabilities.shape[2] == CLASSES


def test_stopping_early_changes_no_text(monkeypatch):
    decoder, x = build().eval(), image(6)
    with torch.no_grad():
        decoder.classifier.bias[EOS] += 0.6  # ends come early
        short = decoder(x)
        monkeypatch.setattr("openrec.modeling.decoders.token_steps.CHECK_EVERY", 1000)
        words = decoder.embedding.weight
        memory, now = decoder.read.memory(decoder.place(x)), decoder.start(decoder.place(x))
        best, rows = torch.full((6,), BOS), []
        for _ in range(7):  # all steps, without any stop
            look = decoder.read(now, memory)
            now = decoder.step(look, now, words[best])
            rows.append(decoder.classify(now.h[:, 0], look.z[:, 0], words[best]).softmax(-1))
            best = rows[-1].argmax(-1)
    full = torch.stack(rows, 1)
    torch.testing.assert_close(full[:, : short.shape[1]], short)
    cut = [row[: row.index(EOS)] if EOS in row else row for row in full.argmax(-1).tolist()]
    assert [row[: row.index(EOS)] if EOS in row else row for row in short.argmax(-1).tolist()] == cut


@pytest.mark.parametrize("name", ["SoftAttnDecoder", "DRAWAttnDecoder"])
def test_a_sample_does_not_depend_on_its_batch(name):
    decoder, x = build(name).train(), image(3)
    together = decoder(x, data=labels([1, 2], [3, 4, 5, 6, 7], [8]))
    alone = decoder(x[:1], data=labels([1, 2]))
    torch.testing.assert_close(together[:1, :3], alone)


def test_steps_after_the_end_reach_no_weight():
    decoder, x = build().train(), image(2)
    loss = build_loss({"name": "ARLoss"})
    data = labels([1, 2], [3, 4, 5, 6, 7])
    logits = decoder(x, data=data)
    (gradient,) = torch.autograd.grad(loss(logits, [x, *data])["loss"], logits)
    assert not gradient[0, 3:].any() and gradient[0, :3].any(-1).all() and gradient[1].any(-1).all()
    assert real_steps(data[0][:, :6], BOS).tolist() == [[True] * 3 + [False] * 3, [True] * 6]


def test_penalty_of_cells_seen_too_often_or_too_seldom():
    decoder, x = build(doubly_stochastic=0.5).train(), image(2)
    data = labels([1, 2], [3])
    out = decoder(x, data=data)
    placed = decoder.place(x)
    looks = decoder.unroll(decoder.read.memory(placed), decoder.start(placed), data[0][:, :3]).looks
    weights = torch.stack([look.weights[:, 0] for look in looks], 1)
    seen = torch.stack((weights[0].sum(0), weights[1, :2].sum(0)))
    torch.testing.assert_close(out["penalty"], 0.5 * (1 - seen).square().sum(1).mean())
    losses = build_loss({"name": "ARLoss"})(out, [x, *data])
    plain = build_loss({"name": "ARLoss"})(out["logits"], [x, *data])["loss"]
    torch.testing.assert_close(losses["loss"], plain + out["penalty"])
    texts = ARLabelDecode(charset=None, character_dict_path=None)(out, [x, *data])  # the metric of a training step
    assert len(texts[0]) == 2


@pytest.mark.parametrize("name", NAMES)
def test_trains_under_bf16_autocast_and_reads_in_bf16(name):
    decoder, x = build(name).float().train(), image().float()
    with torch.autocast("cpu", torch.bfloat16):
        out = decoder(x, data=labels([1, 2], [3]))
        logits = out["logits"] if isinstance(out, dict) else out
    assert torch.isfinite(logits).all()
    with torch.no_grad():
        assert torch.isfinite(decoder.bfloat16().eval()(x.bfloat16())).all()


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_characters_and_their_places_are_told(name):
    decoder, x = build(name).eval(), image(4)
    heard = {}
    for module in decoder.modules():
        module._listener = lambda module, key, tensor: heard.setdefault(key, []).append(tensor)
    with torch.no_grad():
        probabilities = decoder(x)
    (attention,) = heard["attn"]
    assert attention.shape[0] == 4 and attention.shape[1] >= probabilities.shape[1] and attention.shape[2:] == (3, 5)
    torch.testing.assert_close(
        attention.sum((2, 3)), torch.ones(attention.shape[:2], dtype=torch.float64), atol=1e-6, rtol=0
    )
    charset = Charset(tuple("abcdefgh"))
    for item in ARLabelDecode(charset=charset).decode_detailed(probabilities):
        assert len(item.char_scores) == len(item.text) and all(0 < score <= 1 for score in item.char_scores)
    if name == "DRAWAttnDecoder":
        assert heard["box"][0].shape == (4, 1, 4)
    if name == "HardAttnDecoder":
        assert heard["loc"][0].shape[:2] == (4, 1) and heard["loc"][0].min() > 0 and heard["loc"][0].max() < 1


def test_a_map_larger_than_the_positions_is_refused():
    with pytest.raises(ConfigError, match=r"Set Decoder\.map_size: \[3, 9\]"):
        build().eval()(image(1, 3, 9))
    assert build(pos2d=False).eval()(image(1, 3, 9)).shape[2] == CLASSES


@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_is_refused(name):
    encoder = torch.nn.Identity()
    encoder.out_rank, encoder.out_channels = 3, 12
    with pytest.raises(ConfigError, match="Take an encoder that gives a map"):
        BaseRecognizer(encoder=encoder, decoder=build(name))


@pytest.mark.parametrize(
    "options, message",
    [({"cell": "rnn"}, "cell"), ({"init_state": "ones"}, "init_state"), ({"neigh": 2}, "neigh must be odd")],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_training_without_labels_is_refused():
    with pytest.raises(ConfigError, match="KeepKeys"):
        build().train()(image())


def test_keys_are_projected_once_per_text():
    decoder, calls = build().eval(), []
    decoder.read.feat_embed.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        decoder(image(3))
    assert len(calls) == 1


def test_learns_to_copy_cells():
    """Four columns hold a character each; the text is their order: soft attention finds it."""
    torch.manual_seed(0)
    decoder = build_decoder(
        {"name": "SoftAttnDecoder", "in_channels": 10, "out_channels": 11, "hidden": 48, "attn_dim": 32}
        | {"embed_dim": 16, "map_size": [1, 4], "max_len": 4, "dropout": 0.0}
    )
    optimizer = torch.optim.Adam(decoder.parameters(), lr=5e-3)
    loss = build_loss({"name": "ARLoss", "label_smoothing": 0.0})
    for _ in range(250):
        text = torch.randint(1, 9, (64, 4))
        x = torch.nn.functional.one_hot(text, 10).float().transpose(1, 2).unsqueeze(2)
        data = [
            torch.cat((torch.full((64, 1), BOS), text, torch.zeros(64, 1, dtype=torch.long)), 1),
            torch.full((64,), 4),
        ]
        out = loss(decoder.train()(x, data=data), [x, *data])["loss"]
        optimizer.zero_grad()
        out.backward()
        optimizer.step()
    with torch.no_grad():
        read = decoder.eval()(x).argmax(-1)[:, :4]
    assert float((read == text).float().mean()) > 0.9 and math.isfinite(float(out.detach()))
