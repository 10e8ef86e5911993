"""One process or many: decided by the launcher (``torchrun``), gloo on CPUs, nccl on GPUs.

``python tools/train_rec.py`` is one process whatever the number of GPUs; ``torchrun --nproc_per_node=N
tools/train_rec.py`` is N.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from openrec.errors import ConfigError

logger = logging.getLogger("openrec")


@dataclass(frozen=True)
class World:
    """This process among the processes of a run."""

    device: torch.device
    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes logs and files."""
        return self.rank == 0


def launched_rank() -> int:
    """The rank that the launcher gave to this process; 0 without a launcher."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def start_world(device: str, *, join: bool = True) -> World:
    """Read the launcher's environment and join the process group when there is more than one process.

    Args:
        device: ``Global.device``: gpu (falls back to the CPU with one log line), cpu or mps.
        join: False stays alone, for tools that are single processes.

    Raises:
        ConfigError: more processes than GPUs on this machine; a broken launcher environment.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if join else 1
    rank = int(os.environ.get("RANK", "0")) if size > 1 else 0
    local_rank = int(os.environ.get("LOCAL_RANK", str(rank))) if size > 1 else 0
    place = choose_device(device, local_rank)
    if size > 1 and not dist.is_initialized():
        backend = "nccl" if place.type == "cuda" else "gloo"
        try:
            dist.init_process_group(
                backend,
                rank=rank,
                world_size=size,
                timeout=timedelta(minutes=30),
                device_id=place if backend == "nccl" else None,
            )
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"WORLD_SIZE is {size}, but the processes cannot find each other ({error}). Start with torchrun "
                "--nproc_per_node=N tools/train_rec.py ..., or unset WORLD_SIZE for a single process."
            ) from error
    return World(place, rank, local_rank, size)


def stop_world() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        # A thread of gloo needs the interpreter lock to drop its last tensors, and the group's destructor waits for
        # that thread with the lock held: let the thread finish first.
        time.sleep(0.2)
        dist.destroy_process_group()


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The torch device for ``Global.device``."""
    if device in ("gpu", "cuda"):
        if not torch.cuda.is_available():
            logger.info("Global.device is %s, but there is no CUDA GPU here: running on the CPU.", device)
            return torch.device("cpu")
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local_rank} of this machine has no GPU: {torch.cuda.device_count()} visible. Start at most "
                "that many processes (torchrun --nproc_per_node), or set Global.device: cpu."
            )
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if device == "mps" and not torch.backends.mps.is_available():
        logger.info("Global.device is mps, but there is none here: running on the CPU.")
        return torch.device("cpu")
    return torch.device(device)


def sum_over_ranks(values: Sequence[float], world: World) -> list[float]:
    """Element-wise sums over all processes."""
    if world.size == 1:
        return list(values)
    kind = torch.float32 if world.device.type == "mps" else torch.float64
    tensor = torch.tensor(values, dtype=kind, device=world.device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather(value: Any, world: World) -> list[Any]:
    """``value`` of every process, in the order of ranks, on every process."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def gather_numbers(values: Sequence[int], world: World) -> list[list[int]]:
    """A few whole numbers of every process; cheaper than ``gather``."""
    if world.size == 1:
        return [list(values)]
    mine = torch.tensor(values, dtype=torch.int64, device=world.device)
    rows = [torch.empty_like(mine) for _ in range(world.size)]
    dist.all_gather(rows, mine)
    return torch.stack(rows).tolist()


def broadcast(value: Any, world: World, source: int = 0) -> Any:
    """``value`` of rank ``source``, on every process."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=source, device=world.device if world.device.type == "cuda" else None)
    return box[0]


def broadcast_buffers(module: nn.Module, world: World) -> None:
    """Buffers (BatchNorm statistics) of rank 0 on every process."""
    if world.size > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def average_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Mean of the gradients over all processes, by hand.

    ``DistributedDataParallel`` does this during the backward pass; this is for the steps in which it cannot:
    the first one, and one whose last batch could not be used. A parameter without a gradient on every process
    keeps none.
    """
    if world.size == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    present = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32, device=world.device)
    dist.all_reduce(present, op=dist.ReduceOp.MAX)
    wanted = [p for p, there in zip(trained, present.tolist()) if there]
    for dtype in {p.dtype for p in wanted}:
        group = [p for p in wanted if p.dtype == dtype]
        for p in group:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        flat = torch.cat([p.grad.flatten() for p in group if p.grad is not None]).div_(world.size)
        dist.all_reduce(flat)
        _scatter(flat, group)


def _scatter(flat: Tensor, group: Sequence[nn.Parameter]) -> None:
    start = 0
    for p in group:
        assert p.grad is not None
        p.grad.copy_(flat[start : start + p.numel()].view_as(p.grad))
        start += p.numel()
