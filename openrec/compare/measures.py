"""Size, operations, speed and memory of a system."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from openrec.compare.flops import count_flops
from openrec.compare.scores import build, uses_bf16
from openrec.data import build_loader
from openrec.engine.distributed import start_world
from openrec.engine.latency import measure
from openrec.losses import build_loss
from openrec.optimizer import build_optimizer

MEASURED_STEPS, INFER_BATCH, FLOPS_WORDS = 8, 32, 8
MEASURED = "measured.json"


def measure_training(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Size, speed and memory of training, on one batch of its data; kept in ``MEASURED``.

    Memory is what training steps add to a process that holds model and batch already; on a CPU the highest memory of
    the process tells it, so this comes before anything larger.
    """
    file = folder / MEASURED
    if file.exists():
        return json.loads(file.read_text())
    device = start_world(config["Global"]["device"], join=False).device
    torch.manual_seed(int(config["Global"]["seed"]))
    model, _, charset = build(config)
    loader = build_loader({**config, "Train": _in_process(config["Train"])}, "Train", charset=charset, seed=0)
    batch = next(iter(loader.epoch(1))).to(device)
    loader.close()
    image = batch.tensors[0]
    channels, height, width = image.shape[1:]
    numbers = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "image": [channels, height, width], "batch_size": len(image),
    }  # fmt: skip
    model.to(device)
    numbers |= _training_speed(model, config, batch.tensors, device)
    numbers["machine"] = _machine(device)
    file.write_text(json.dumps(numbers))
    return numbers


def _in_process(section: Mapping[str, Any]) -> dict[str, Any]:
    return {**section, "loader": {**section["loader"], "num_workers": 0}}


def _training_speed(model: nn.Module, config: Mapping[str, Any], tensors: list[Any], device: Any) -> dict[str, float]:
    """Whole optimizer steps on one batch, without data: images per second and the memory they take."""
    options = config["Global"]
    loss = build_loss(config["Loss"]).to(device)
    optimizer, _ = build_optimizer(config["Optimizer"], config["LRScheduler"], int(options["epoch_num"]), 100, model)
    before, times = _memory(device, peak=False), []
    model.train()
    for module in model.modules():
        if hasattr(module, "begin_epoch"):
            module.begin_epoch(1)  # type: ignore[operator]
    for _ in range(MEASURED_STEPS + 2):
        start = _now(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(config, device)):
            losses = loss(model(tensors[0], data=tensors[1:]), tensors)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(_now(device) - start)
    return {
        "train_ips": len(tensors[0]) / statistics.median(times[2:]),
        "peak_memory_mib": _memory(device) - before,
    }


def measure_reading(config: Mapping[str, Any], weights: Path) -> dict[str, float]:
    """Operations and speed of the trained system on held-out words: how long a decoder that loops reads is learned."""
    device = start_world(config["Global"]["device"], join=False).device
    model, _, charset = build(config, weights)
    section = {**config["Eval" if config.get("Eval") else "Train"]}
    section["loader"] = {"batch_size_per_card": INFER_BATCH, "num_workers": 0}
    section.pop("sampler", None)
    loader = build_loader({**config, "Eval": section}, "Eval", charset=charset, seed=0)
    images = next(iter(loader.epoch(1))).tensors[0]
    loader.close()
    flops = [count_flops(model, images[i : i + 1]) for i in range(min(FLOPS_WORDS, len(images)))]
    model.to(device).eval()
    shape, many = (images.shape[3], images.shape[2]), len(images)

    def run(zeros: Any) -> Any:  # the timer brings the batch size, not the words
        return model(images[: len(zeros)].to(device))

    with torch.inference_mode():
        one, batch = measure(run, [shape], (1, many), channels=images.shape[1], warm_up=3, runs=25, seconds=5)
    return {
        "flops": statistics.fmean(flops), "latency_ms": one.median, "infer_ips": 1000 / batch.per_image,
        "infer_batch": many,
    }  # fmt: skip


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _memory(device: torch.device, peak: bool = True) -> float:
    """MiB: of a GPU's tensors, or of the process; the highest so far or now. NaN where the system does not tell."""
    if device.type == "cuda":
        return (torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)(device) / 2**20
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return math.nan
    wanted = "VmHWM:" if peak else "VmRSS:"
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(wanted)), math.nan)


def _machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} thread(s)"
    return f"{device.type} ({name}), torch {torch.__version__}"
