"""Hard attention: its gradient against all sequences of a small grid, its terms, its reads, and that it learns."""

import itertools

import pytest
import torch

from openrec.errors import ConfigError
from openrec.losses import build_loss
from openrec.modeling.decoders import build_decoder
from openrec.modeling.decoders.hard_attn_decoder import MOMENTUM, SOFT_GAP_EVERY, reward_to_go, rewards

CELLS, STEPS, CLASSES = 3, 2, 4  # 9 sequences of looks
BOS, PAD = CLASSES, CLASSES + 1
SEQUENCES = list(itertools.product(range(CELLS), repeat=STEPS))
DATA = [torch.tensor([[BOS, 2, 0]]), torch.tensor([1])]


def build(**options):
    torch.manual_seed(0)
    sizes = {"in_channels": 5, "out_channels": CLASSES + 2, "hidden": 6, "attn_dim": 5, "embed_dim": 4, "max_len": 3}
    fixed = {"dropout": 0.0, "map_size": [1, CELLS], "lambda_e": 0.0, "semi_sampling_p": 0.0, "warm_start_epochs": 0}
    decoder = build_decoder({"name": "HardAttnDecoder", **sizes, **fixed, **options}).double().train()
    with torch.no_grad():  # a policy that is far from uniform
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, dtype=torch.float64) * 0.8)
    return decoder


def image(batch=1):
    return torch.randn(batch, 5, 1, CELLS, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def loss_of(smoothing=0.0):
    return build_loss({"name": "HardAttnLoss", "label_smoothing": smoothing})


def looking_at(monkeypatch, *sequences):
    """Make the draws of the next text those of ``sequences``, one per reading."""
    draws = iter(list(zip(*sequences)))
    monkeypatch.setattr(torch, "multinomial", lambda p, n: torch.tensor(next(draws)).unsqueeze(1))


def gradient(value, decoder):
    parts = torch.autograd.grad(value, list(decoder.parameters()), allow_unused=True)
    return torch.cat(
        [torch.zeros(p.numel()) if g is None else g.flatten() for g, p in zip(parts, decoder.parameters())]
    )


def probability_and_likelihood(decoder, x, sequence, monkeypatch):
    looking_at(monkeypatch, *[sequence] * decoder.n_samples)
    out = decoder(x, data=DATA)
    log_p = out["logits"][0, 0].log_softmax(-1).gather(-1, DATA[0][0, 1:, None]).sum()
    return out["log_pi"][0, 0].sum(), log_p


def exact(decoder, x, monkeypatch):
    """The gradient of J = sum_s p(s) log p(y | s), and each p(s)."""
    both = [probability_and_likelihood(decoder, x, s, monkeypatch) for s in SEQUENCES]
    total = sum(log_pi.exp() * log_p for log_pi, log_p in both)
    return gradient(total, decoder), [float(log_pi.detach().exp()) for log_pi, _ in both]


@pytest.mark.parametrize("reward", ["to_go", "sequence"])
@pytest.mark.parametrize("baseline", [0.0, -3.7, (1.3, -0.4)], ids=["none", "constant", "per_step"])
def test_the_estimator_is_unbiased(reward, baseline, monkeypatch):
    decoder, x = build(n_samples=1, baseline="moving", reward=reward), image()
    want, probabilities = exact(decoder, x, monkeypatch)
    assert sum(probabilities) == pytest.approx(1.0) and max(probabilities) < 0.9
    mean = torch.zeros_like(want)
    for sequence, p in zip(SEQUENCES, probabilities):
        with torch.no_grad():
            decoder.moving[:STEPS] = torch.tensor(baseline)
        looking_at(monkeypatch, sequence)
        mean -= p * gradient(loss_of()(decoder(x, data=DATA), [x, *DATA])["loss"], decoder) * STEPS
    torch.testing.assert_close(mean, want, rtol=0, atol=1e-12)
    names = {n.split(".")[0] for n, p in decoder.named_parameters()}
    assert {"read", "cell", "embedding", "classifier"} <= names and float(want.abs().max()) > 1e-3


def test_leaving_one_out_is_unbiased(monkeypatch):
    decoder, x = build(n_samples=2, baseline="self"), image()
    want, probabilities = exact(decoder, x, monkeypatch)
    mean = torch.zeros_like(want)
    for (one, p), (two, q) in itertools.product(zip(SEQUENCES, probabilities), repeat=2):
        looking_at(monkeypatch, one, two)
        mean -= p * q * gradient(loss_of()(decoder(x, data=DATA), [x, *DATA])["loss"], decoder) * STEPS
    torch.testing.assert_close(mean, want, rtol=0, atol=1e-12)


def test_a_baseline_that_knows_the_draw_is_biased(monkeypatch):
    decoder, x = build(n_samples=1, baseline="moving"), image()
    want, probabilities = exact(decoder, x, monkeypatch)
    mean = torch.zeros_like(want)
    for sequence, p in zip(SEQUENCES, probabilities):
        looking_at(monkeypatch, sequence)
        out = decoder(x, data=DATA)
        step = rewards(out["logits"], DATA[0][:, 1:], out["reward_mask"])
        out["value"] = 0.5 * reward_to_go(step, "to_go")
        mean -= p * gradient(loss_of()(out, [x, *DATA])["loss"], decoder) * STEPS
    assert float((mean - want).abs().max()) > 1e-3


def test_the_draws_follow_the_attention():
    decoder, x = build(n_samples=4000, baseline="none"), image()
    with torch.no_grad():
        out = decoder(x, data=DATA)
    chosen = out["log_pi"][0, :, 0].exp()
    memory = decoder.read.memory(decoder.place(x))
    weights = decoder.read(decoder.start(decoder.place(x)), memory).weights[0, 0]
    shares = torch.stack([(chosen - w).abs().lt(1e-9).double().mean() for w in weights.detach()])
    torch.testing.assert_close(shares, weights.detach(), atol=0.03, rtol=0)


def test_reading_takes_the_likeliest_cell():
    decoder, x = build().eval(), image(4)
    memory = decoder.read.memory(decoder.place(x))
    state = decoder.start(decoder.place(x))
    look = decoder.read(state, memory)
    torch.testing.assert_close(look.z[:, 0], memory.cells[torch.arange(4), look.weights[:, 0].argmax(-1)])
    with torch.no_grad():
        assert torch.equal(decoder(x), decoder(x))  # nothing is drawn


def test_one_hot_attention_reads_the_same_hard_and_soft():
    decoder, x = build().eval(), image(4)
    with torch.no_grad():
        decoder.read.attnfeat_embed.weight *= 1e7
        placed = decoder.place(x)
        hard = decoder.decode(placed)
        soft = decoder.decode(placed, lambda state, memory: decoder.read(state, memory, how="soft"))
    torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize("options", [{"semi_sampling_p": 1.0}, {"estimator": "soft"}, {"warm_start_epochs": 2}])
def test_the_soft_read_is_soft_attention_exactly(options):
    decoder, x = build(**{"lambda_e": 0.1, **options}), image(2)
    decoder.begin_epoch(2)
    sizes = {"in_channels": 5, "out_channels": CLASSES + 2, "hidden": 6, "attn_dim": 5, "embed_dim": 4, "max_len": 3}
    soft = build_decoder({"name": "SoftAttnDecoder", **sizes, "dropout": 0.0, "map_size": [1, CELLS]}).double().train()
    soft.load_state_dict({k: v for k, v in decoder.state_dict().items() if k != "batches"})
    data = [torch.tensor([[BOS, 2, 1, 0], [BOS, 3, 0, PAD]]), torch.tensor([2, 1])]
    out, logits = decoder(x, data=data), soft(x, data=data)
    assert torch.equal(out["logits"][:, 0], logits)
    want = build_loss({"name": "ARLoss"})(logits, [x, *data])["loss"]
    got = loss_of(0.1)(out, [x, *data])["loss"]
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient(got, decoder), gradient(want, soft))


def test_half_of_the_batches_are_read_softly_the_same_on_every_process():
    one, two = build(semi_sampling_p=0.5), build(semi_sampling_p=0.5)
    torch.manual_seed(1)
    first = [one._how(i) for i in range(400)]
    torch.manual_seed(2)
    assert first == [two._how(i) for i in range(400)] and 0.4 < first.count("soft") / 400 < 0.6


def test_the_warm_start_ends():
    decoder = build(warm_start_epochs=1)
    assert decoder._how(0) == "sample"  # nobody counts epochs
    decoder.begin_epoch(1)
    assert decoder._how(0) == "soft"
    decoder.begin_epoch(2)
    assert decoder._how(0) == "sample"


def test_the_entropy_term_raises_the_entropy():
    decoder, x = build(lambda_e=1.0, lambda_r=0.0), image(3)
    data = [DATA[0].expand(3, -1), DATA[1].expand(3)]

    def entropy():
        torch.manual_seed(5)
        out = decoder(x, data=data)
        losses = loss_of()(out, [x, *data])
        return losses["loss"] - losses["ce_loss"], losses["entropy"].detach()

    term, before = entropy()
    torch.testing.assert_close(term, -before)
    attention = list(decoder.read.parameters())
    for parameter, g in zip(attention, torch.autograd.grad(term, attention)):
        parameter.data -= 1e-3 * g
    assert float(entropy()[1]) > float(before)


def test_steps_after_the_end_have_no_gradient():
    decoder, x = build(lambda_e=0.1, n_samples=2, baseline="self"), image(2)
    data = [torch.tensor([[BOS, 2, 1, 3, 0], [BOS, 3, 0, PAD, PAD]]), torch.tensor([3, 1])]
    out = decoder(x, data=data)
    assert out["reward_mask"].tolist() == [[True] * 4, [True, True, False, False]]
    wrt = [out["logits"], out["log_pi"], out["entropy"]]
    for g in torch.autograd.grad(loss_of()(out, [x, *data])["loss"], wrt):
        assert not g[1, :, 2:].any() and g[0].any() and g[1, :, :2].any()


def test_rewards_do_not_depend_on_the_batch(monkeypatch):
    decoder, x = build(n_samples=1, baseline="none"), image(2)
    looking_at(monkeypatch, (0, 1, 2), (2, 0, 1))
    data = [torch.tensor([[BOS, 3, 0, PAD], [BOS, 2, 1, 0]]), torch.tensor([1, 2])]
    both = decoder(x, data=data)
    looking_at(monkeypatch, (0, 1))
    alone = decoder(x[:1], data=[data[0][:1, :3], data[1][:1]])
    for key in ("logits", "log_pi", "entropy"):
        torch.testing.assert_close(both[key][:1, :, :2], alone[key])


def test_reward_to_go_and_of_the_sequence():
    step = torch.tensor([[1.0, 2.0, 4.0]])
    assert reward_to_go(step, "to_go").tolist() == [[7.0, 6.0, 4.0]]
    assert reward_to_go(step, "sequence").tolist() == [[7.0, 7.0, 7.0]]


def test_the_moving_baseline_follows_the_rewards():
    decoder, x = build(n_samples=2, baseline="moving"), image(2)
    data = [torch.tensor([[BOS, 2, 1, 0], [BOS, 3, 0, PAD]]), torch.tensor([2, 1])]
    out = decoder(x, data=data)
    total = reward_to_go(rewards(out["logits"], data[0][:, 1:] % PAD, out["reward_mask"]), "to_go")
    first = torch.stack((total[:, :, 0].mean(), total[:, :, 1].mean(), total[0, :, 2].mean()))
    assert not out["value"].any()
    torch.testing.assert_close(decoder.moving[:3], first, check_dtype=False)
    out = decoder(x, data=data)
    torch.testing.assert_close(out["value"][0, 0], first, check_dtype=False)
    total = reward_to_go(rewards(out["logits"], data[0][:, 1:] % PAD, out["reward_mask"]), "to_go")
    want = MOMENTUM * first[0] + (1 - MOMENTUM) * total[:, :, 0].mean()
    torch.testing.assert_close(decoder.moving[0], want, check_dtype=False)
    assert "moving" in decoder.state_dict() and float(decoder.moving[3]) == 0.0


@pytest.mark.parametrize("options", [{}, {"baseline": "learned"}, {"baseline": "moving"}, {"estimator": "gumbel_st"}])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_every_parameter_learns(options, p):
    """In soft batches as well as in sampled ones: processes wait for each other's gradients."""
    decoder, x = build(semi_sampling_p=p, **options), image(2)
    data = [torch.tensor([[BOS, 2, 1, 0], [BOS, 3, 0, PAD]]), torch.tensor([2, 1])]
    losses = loss_of(0.1)(decoder(x, data=data), [x, *data])
    losses["loss"].backward()
    assert all(p.grad is not None for p in decoder.parameters())
    if not options and not p:
        assert {"ce_loss", "policy_loss", "entropy", "adv_std"} <= set(losses)


def test_the_learned_baseline_teaches_nothing_to_the_reader():
    decoder, x = build(baseline="learned", n_samples=1), image(2)
    data = [DATA[0].expand(2, -1), DATA[1].expand(2)]
    value_loss = loss_of()(decoder(x, data=data), [x, *data])["value_loss"]
    gradients = torch.autograd.grad(value_loss, list(decoder.parameters()), allow_unused=True)
    touched = {n for (n, _), g in zip(decoder.named_parameters(), gradients) if g is not None and g.any()}
    assert touched and all(name.startswith("value_head") for name in touched)


def test_the_soft_gap_is_told_now_and_then():
    decoder, x = build(), image()
    told = ["soft_gap" in loss_of()(decoder(x, data=DATA), [x, *DATA]) for _ in range(SOFT_GAP_EVERY + 2)]
    assert told[0] and told[SOFT_GAP_EVERY] and sum(told) == 2


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match=r"Set Decoder\.n_samples"):
        build(n_samples=1)
    with pytest.raises(ConfigError, match="semi_sampling_p"):
        build(semi_sampling_p=1.5)
    for option in ("estimator", "baseline", "reward"):
        with pytest.raises(ConfigError, match=option):
            build(**{option: "nothing"})


def copy_task(lambda_r, steps=250):
    """Accuracy per character at copying a word, one character a column, after training with draws alone."""
    torch.manual_seed(0)
    decoder = build_decoder(
        {"name": "HardAttnDecoder", "in_channels": 6, "out_channels": 9, "hidden": 32, "attn_dim": 32, "embed_dim": 16}
        | {"map_size": [1, 4], "max_len": 3, "dropout": 0.0, "n_samples": 4, "lambda_r": lambda_r, "lambda_e": 0.01}
        | {"semi_sampling_p": 0.0, "warm_start_epochs": 0}
    )
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    loss = loss_of()

    def batch(n):
        text = torch.randint(1, 7, (n, 3))
        shown = torch.cat((text, torch.randint(1, 7, (n, 1))), 1) - 1  # the last column is noise
        x = torch.nn.functional.one_hot(shown, 6).float().transpose(1, 2).unsqueeze(2) * 2
        label = torch.cat((torch.full((n, 1), 7), text, torch.zeros(n, 1, dtype=torch.long)), 1)
        return x, [label, torch.full((n,), 3)]

    for _ in range(steps):
        x, data = batch(64)
        out = loss(decoder.train()(x, data=data), [x, *data])["loss"]
        optimizer.zero_grad()
        out.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
    x, data = batch(500)
    with torch.no_grad():
        read = decoder.eval()(x).argmax(-1)[:, :3]
    return float((torch.nn.functional.pad(read, (0, 3 - read.shape[1])) == data[0][:, 1:4]).float().mean())


def test_hard_attention_learns_where_to_look():
    """The policy that rewards taught reads far better than the same reader whose policy was never taught."""
    learned, untaught = copy_task(1.0), copy_task(0.0)
    print(f"accuracy per character: {learned:.3f}, with an untrained policy {untaught:.3f}, guessing 0.167")
    assert learned > 0.9 and learned > untaught + 0.3
