"""Two processes on one machine do what one does."""

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys

import engine_case
import pytest
import torch
import torch.distributed as dist
from torch import nn

from openrec.checkpoint import read_checkpoint
from openrec.data.types import Batch, Skipped
from openrec.engine.distributed import World, average_gradients, gather, start_world, stop_world, sum_over_ranks
from openrec.engine.step import TrainStep
from openrec.engine.sync_bn import SyncedBatchNorm, use_synced_batch_norm
from openrec.engine.trainer import Trainer
from openrec.errors import ConfigError, OpenRecError
from openrec.optimizer import build_optimizer


def free_port():
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _child(work, rank, size, port, folder):
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        answer = (work(), None)
    except Exception as error:
        answer = (None, f"{type(error).__name__}: {error}")
    torch.save(answer, folder / f"{rank}.pt")
    stop_world()


def in_processes(work, folder, size=2):
    """``(work(), error)`` of ``size`` processes with a launcher's environment, by rank."""
    context, port = multiprocessing.get_context("fork"), free_port()
    processes = [context.Process(target=_child, args=(work, r, size, port, folder)) for r in range(size)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(100)
        p.kill()
    return [torch.load(folder / f"{r}.pt", weights_only=False) for r in range(size)]


def values(answers):
    assert all(error is None for _, error in answers), answers
    return [value for value, _ in answers]


def test_one_process_without_a_launcher(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = start_world("cpu")
    assert (world.rank, world.size, world.is_main) == (0, 1, True) and not dist.is_initialized()
    assert gather("x", world) == ["x"] and sum_over_ranks([1.5], world) == [1.5]


def test_collectives(tmp_path):
    def work():
        world = start_world("cpu")
        used, half, idle = (nn.Parameter(torch.zeros(2)) for _ in range(3))
        used.grad = torch.full((2,), float(world.rank))
        if world.rank:
            half.grad = torch.ones(2)
        average_gradients([used, half, idle], world)
        return gather(world.rank, world), sum_over_ranks([1, world.rank], world), used.grad, half.grad, idle.grad

    for everyone, sums, used, half, idle in values(in_processes(work, tmp_path)):
        assert everyone == [0, 1] and sums == [2, 1] and idle is None
        assert used.tolist() == [0.5, 0.5] and half.tolist() == [0.5, 0.5]


def test_synced_batch_norm_equals_one_process(tmp_path):
    x, g = torch.randn(6, 3, 2, 5), torch.randn(6, 3, 2, 5)
    plain = nn.BatchNorm2d(3)
    nn.init.uniform_(plain.weight)
    start = {k: v.clone() for k, v in plain.state_dict().items()}
    a = x.clone().requires_grad_()
    (plain(a) * g).sum().backward()

    def work():
        world = start_world("cpu")
        rows = slice(0, 4) if world.rank == 0 else slice(4, 6)
        bn = nn.BatchNorm2d(3)
        bn.load_state_dict(start)
        (synced,) = use_synced_batch_norm(nn.Sequential(bn), world.device)
        assert isinstance(synced, SyncedBatchNorm)
        b = x[rows].clone().requires_grad_()
        (synced(b) * g[rows]).sum().backward()
        weight = synced.weight.grad.clone()
        dist.all_reduce(weight)
        return b.grad, weight, synced.running_mean, synced.running_var, synced.eval()(x)

    (first, weight, mean, var, out), (second, *_) = values(in_processes(work, tmp_path))
    torch.testing.assert_close(torch.cat((first, second)), a.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight, plain.weight.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, plain.running_mean)
    torch.testing.assert_close(var, plain.running_var)
    torch.testing.assert_close(out, plain.eval()(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.one, self.norm, self.two = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.idle = nn.Linear(2, 2)

    def forward(self, x, data=None):
        return self.two(torch.relu(self.norm(self.one(x))).mean((2, 3)))


class Error(nn.Module):
    def forward(self, preds, batch):
        return {"loss": (preds - batch[1]).square().mean()}


def steps_of(parts_by_step):
    """Train ``Net`` on this process's batches; a batch is a list of sample numbers, ``None`` numbers were skipped."""
    world = start_world("cpu")
    data = torch.Generator().manual_seed(1)
    images, targets = torch.randn(40, 1, 6, 6, generator=data), torch.randn(40, 2, generator=data)

    def batch(ids):
        good = [i for i in ids if i is not None]
        tensors = [images[good], targets[good]] if good else []
        n = len(good)
        return Batch(tensors, ["a"] * n, [f"s:{i}" for i in good], [Skipped("x", "y")] * (len(ids) - n), [], [])

    model = Net()
    if world.size > 1:
        model = use_synced_batch_norm(model, world.device)
    optimizer, schedule = build_optimizer({"name": "SGD", "lr": 0.1}, {"name": "ConstLR"}, 1, 99, model)
    step = TrainStep(model, Error(), optimizer, schedule, world)
    losses = []
    for number, parts in enumerate(parts_by_step):
        losses.append(step([batch(p[world.rank]) for p in parts], number + 1, number).losses.get("loss"))
    return losses, {k: v.clone() for k, v in model.state_dict().items()}


# [step][batch of the step][process]: samples; uneven parts, skipped ones, a process without any
PARTS = [
    [[[0, 1], [2, 3]], [[4, 5], [6]]],
    [[[7, None], [8, 9]]],
    [[[10, 11], [None, None]], [[12], [13, 14]]],
    [[[15, 16], [17, 18]], [[None], [19, 20]]],
    [[[None], [None]]],
    [[[21, 22, 23], [24]]],
]


def test_two_processes_with_skipped_samples_equal_one(tmp_path):
    whole = [[[[i for part in parts for i in part]] for parts in step] for step in PARTS]
    losses, state = steps_of(whole)
    results = values(in_processes(lambda: steps_of(PARTS), tmp_path))
    for other_losses, other in results:
        assert [x is None for x in losses] == [x is None for x in other_losses]
        assert [x for x in losses if x] == pytest.approx([x for x in other_losses if x], rel=1e-4)
        for name, value in state.items():
            if name != "norm.num_batches_tracked":
                torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(v, results[1][1][k]) for k, v in results[0][1].items())


# SGD: Adam turns a gradient's rounding errors into whole steps where the gradient itself is nearly zero
CHANGES = {
    "Global.use_sync_bn": True, "Global.epoch_num": 2, "Global.save_latest_step": 1, "Global.grad_clip_val": 5.0,
    "Architecture.Encoder.drop_path_rate": 0.0,
    "Optimizer": {"name": "SGD", "lr": 0.05, "weight_decay": 0.05, "filter_bias_and_bn": True},
}  # fmt: skip


def test_two_ranks_train_and_evaluate_like_one(tmp_path):
    data = {"train": 21, "evaluation": 11, "bad": (3,)}
    single = {**CHANGES, "Global.output_dir": str(tmp_path / "one"), "Train.loader.batch_size_per_card": 8}
    best = Trainer(engine_case.config(tmp_path, single, **data)).train()
    config = engine_case.config(tmp_path, CHANGES, **data)
    answers = values(in_processes(lambda: Trainer(config).train(), tmp_path))
    one, two = (read_checkpoint(tmp_path / name / "latest.pth") for name in ("one", "out"))
    assert one["global_step"] == two["global_step"] == 6
    for name, value in one["state_dict"].items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    a, b = (engine_case.rows(tmp_path / name, "train") for name in ("one", "out"))
    assert [r["loss"] for r in a] == pytest.approx([r["loss"] for r in b], rel=1e-5)
    for numbers in answers:
        assert numbers["num_samples"] == best["num_samples"] == 11
        assert numbers["acc"] == best["acc"] and numbers["norm_edit_dis"] == pytest.approx(
            best["norm_edit_dis"], abs=0.02
        )
    assert "image-000000003" in (tmp_path / "out/train.log").read_text()


def test_the_loss_of_one_process_stops_all(tmp_path):
    def work():
        world = start_world("cpu")
        model = Net()
        optimizer, schedule = build_optimizer({"name": "SGD", "lr": 0.1}, {"name": "ConstLR"}, 1, 99, model)
        step = TrainStep(model, Error(), optimizer, schedule, world)
        for number in range(4):
            x = torch.randn(2, 1, 6, 6) * (float("nan") if world.rank == 1 and number >= 2 else 1)
            step([Batch([x, torch.zeros(2, 2)], ["a"] * 2, [f"r{world.rank}:{number}"] * 2)], number + 1, number)

    for _, error in in_processes(work, tmp_path):
        assert (
            error.startswith("OpenRecError: the loss is not finite") and "samples: r1:3" in error and "r0:" not in error
        )


def test_more_processes_than_gpus_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    from openrec.engine.distributed import choose_device

    with pytest.raises(ConfigError, match="process 1 of this machine has no GPU: 1 visible"):
        choose_device("gpu", 1)
    assert issubclass(ConfigError, OpenRecError) and World(torch.device("cpu")).is_main


@pytest.mark.slow
def test_torchrun_kills_and_continues(tmp_path):
    """The real launcher: one run straight, one in two pieces."""
    path = engine_case.config_file(tmp_path, CHANGES)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}",
        str(engine_case.ROOT / "tools/train_rec.py"), "-c", str(path), "-o",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = [f"Global.output_dir={tmp_path / 'straight'}"]
    subprocess.run(command + out, check=True, cwd=engine_case.ROOT, env=env)
    subprocess.run([*command, "Global.max_steps=4"], check=True, cwd=engine_case.ROOT, env=env)
    subprocess.run([*command, "Global.epoch_num=2"], check=True, cwd=engine_case.ROOT, env=env)
    one, two = (read_checkpoint(tmp_path / name / "latest.pth")["state_dict"] for name in ("straight", "out"))
    assert all(torch.equal(one[k], two[k]) for k in one)
