"""The training step: accumulation, clipping, skipped batches, on small stand-ins for model and data."""

import math

import pytest
import torch
from torch import nn

from openrec.data.types import Batch, Skipped
from openrec.engine.distributed import World
from openrec.engine.step import TrainStep
from openrec.errors import OpenRecError
from openrec.optimizer import build_optimizer

WORLD = World(torch.device("cpu"))


class Line(nn.Module):
    """A mean-squared error on a few numbers, in the forms of a recogniser and its loss."""

    def __init__(self, dropout=0.0):
        super().__init__()
        torch.manual_seed(3)
        self.one, self.two, self.idle = nn.Linear(4, 8), nn.Linear(8, 2), nn.Linear(1, 1)

    def forward(self, x, data=None):
        return self.two(torch.tanh(self.one(x)))


class Error(nn.Module):
    def forward(self, preds, batch):
        return {"loss": (preds.float() - batch[1]).square().mean()}


def batch(n, seed=0, weight=1.0):
    g = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(n, 4, generator=g), torch.randn(n, 2, generator=g)] if n else []
    skipped = [] if n else [Skipped("x:1", "broken")]
    return Batch(tensors, ["a"] * n, [f"s{seed}:{i}" for i in range(n)], skipped, [None] * n, [False] * n, weight)


def trained(groups, name="SGD", steps=None, **options):
    model = Line()
    config = {"name": name, "lr": 0.1}
    optimizer, schedule = build_optimizer(config, {"name": "LinearLR"}, 1, steps or len(groups), model)
    step = TrainStep(model, Error(), optimizer, schedule, WORLD, **options)
    results = [step(group, i + 1, i) for i, group in enumerate(groups)]
    return torch.cat([p.detach().flatten() for p in model.parameters()]), results, step


def joined(batches):
    return Batch(
        [torch.cat(parts) for parts in zip(*(b.tensors for b in batches))], [t for b in batches for t in b.texts],
        [n for b in batches for n in b.names], [], [], [],
    )  # fmt: skip


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_t53_accumulation_equals_the_large_batch(amp, clip):
    parts = [[batch(4, s), batch(4, s + 10)] for s in range(3)]
    one, results, _ = trained(parts, amp=amp, grad_clip=clip)
    other, single, _ = trained([[joined(p)] for p in parts], amp=amp, grad_clip=clip)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-3 if amp else 1e-6)
    assert [r.losses["loss"] for r in results] == pytest.approx(
        [r.losses["loss"] for r in single], rel=1e-2 if amp else 1e-5
    )
    assert [r.lr for r in results] == pytest.approx([0.1, 0.1 * 2 / 3, 0.1 / 3])  # one schedule step per update


def test_t4_gradients_start_from_zero_in_every_step():
    _, results, _ = trained([[batch(4)]] * 12, steps=10**6, grad_clip=1e-9)  # hardly any movement
    assert max(r.grad_norm for r in results) == pytest.approx(results[0].grad_norm, rel=1e-3)


def test_a_leftover_of_an_epoch_counts_as_a_whole_step():
    one, _, _ = trained([[batch(4, 1), batch(4, 2)], [batch(4, 3)]])
    other, _, _ = trained([[joined([batch(4, 1), batch(4, 2)])], [batch(4, 3)]])
    torch.testing.assert_close(one, other)


def test_clipping_limits_the_norm():
    _, (result,), step = trained([[batch(8)]], grad_clip=0.01)
    total = math.sqrt(sum(float(p.grad.square().sum()) for p in step.model.parameters() if p.grad is not None))
    assert result.grad_norm > 0.01 and total == pytest.approx(0.01, rel=1e-3)


def test_batches_without_a_usable_sample_are_left_out():
    one, results, _ = trained([[batch(4, 1), batch(0)], [batch(0)], [batch(4, 2)]])
    assert [r.updated for r in results] == [True, False, True] and results[1].losses == {}
    model = Line()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert not torch.equal(one, before)


def test_parameters_without_gradient_are_named(caplog):
    trained([[batch(4)]])
    assert "2 parameters get no gradient" in caplog.text and "idle.weight" in caplog.text


class Broken(Error):
    """Not finite for the batches whose first number is marked."""

    def forward(self, preds, batch):
        loss = super().forward(preds, batch)["loss"]
        return {"loss": loss * float("nan") if batch[0][0, 0] == 99 else loss}


def marked(n, seed):
    b = batch(n, seed)
    b.tensors[0][0, 0] = 99
    return b


def run_broken(groups, **options):
    model = Line()
    optimizer, schedule = build_optimizer({"name": "SGD", "lr": 0.1}, {"name": "ConstLR"}, 1, 100, model)
    step = TrainStep(model, Broken(), optimizer, schedule, WORLD, **options)
    for i, group in enumerate(groups):
        step(group, i + 1, i)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_a_batch_that_is_not_finite_is_dropped_and_the_step_goes_on(caplog):
    one = run_broken([[batch(4, 1), marked(4, 2), batch(4, 3)]])
    other = run_broken([[joined([batch(4, 1), batch(4, 3)])]])
    torch.testing.assert_close(one, other)
    assert "step 1, batch 1 of the epoch, samples: s2:0, s2:1, s2:2, s2:3" in caplog.text


def test_two_in_a_row_stop_the_run_and_name_step_batch_samples():
    run_broken([[marked(2, 1)], [batch(2, 2)], [marked(2, 3)], [batch(2, 4)]])  # never twice in a row
    with pytest.raises(
        OpenRecError, match=r"(?s)step 3, batch 2 of the epoch, samples: s3:0, s3:1\..*weights were not"
    ):
        run_broken([[batch(2, 1)], [marked(2, 2)], [marked(2, 3)]])


def test_a_gradient_that_is_not_finite_counts_the_same():
    class Cliff(Error):
        def forward(self, preds, batch):
            x = (preds.sum() * 0).abs().sqrt()  # 0, with an infinite slope
            return {"loss": super().forward(preds, batch)["loss"] + x}

    model = Line()
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizer, schedule = build_optimizer({"name": "SGD", "lr": 0.1}, {"name": "ConstLR"}, 1, 100, model)
    step = TrainStep(model, Cliff(), optimizer, schedule, WORLD)
    step([batch(4)], 1, 0)
    with pytest.raises(OpenRecError, match="the gradient is not finite"):
        step([batch(4)], 2, 1)
    assert torch.equal(torch.cat([p.detach().flatten() for p in model.parameters()]), before)


@pytest.mark.slow
def test_compiled_step_equals_the_plain_one():
    pytest.importorskip("torch._inductor")
    groups = [[batch(4, s)] for s in range(4)]
    try:
        one, _, _ = trained(groups, compile=True)
    except Exception as error:
        if "compiler" in str(error).lower():
            pytest.skip("no C++ compiler for torch.compile")
        raise
    torch.testing.assert_close(one, trained(groups)[0])
