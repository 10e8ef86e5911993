#!/usr/bin/env python3
"""Speed of the DASSM block and of SVTRv2Mamba on the compiled operators, their references and the attention control.

    python benchmarks/bench_block.py                  # CPU: block, training step, inference; then cost against width
    python benchmarks/bench_block.py --device cuda    # GPU: also launches per pass and peak memory
    options: --batch 16 --widths 128 512 --rounds 3 --no-widths --dtype bfloat16 --out results/name.json

Models are the encoders of ``svtrv2_mamba_rctc.yml`` and ``svtrv2_attn_rctc.yml`` with the RCTC head, 32 pixels high. A
training step is forward, CTC loss, backward, clipping and AdamW. Rounds are interleaved, medians are reported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openrec import ops
from openrec.modeling import build_model
from openrec.modeling.encoders.svtrv2_mamba import DASSMBlock
from openrec.ops._load import native

SIZE = {"dims": [64, 128, 256], "depths": [6, 6, 6], "num_heads": [2, 4, 8], "feat2d": True}
CONTROL = {"name": "SVTRv2LNConvTwo33", "mixer": ["Conv*6", "Conv*2, FGlobal, Global*3", "Global*6"]}
MAMBA = {"name": "SVTRv2Mamba", "mixer": ["Conv*6", "Conv*2, Mamba*4", "Mamba*6"], "final_norm": True}
BACKENDS = ("native", "torch", "reference")
CLASSES = 95


def model(kind: str) -> nn.Module:
    """``kind`` is a backend of the operators, or 'attention'."""
    encoder = {**CONTROL} if kind == "attention" else {**MAMBA, "op_backend": kind}
    torch.manual_seed(0)
    encoder |= {**SIZE, "use_pos_embed": False}
    return build_model({"Encoder": encoder, "Decoder": {"name": "RCTCDecoder", "out_channels": CLASSES}})


class Bench:
    """Times calls on one device under one autocast type."""

    def __init__(self, device: str, dtype: str, rounds: int):
        self.device, self.rounds = device, rounds
        self.half = torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32")

    def seconds(self, run: Callable[[], Any]) -> float:
        # With one thread the processor's time: a busy machine does not count.
        clock = time.thread_time if self.device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        self.wait()
        start = clock()
        run()
        self.wait()
        return clock() - start

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def compare(self, calls: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
        """Milliseconds by name; on a GPU also launches and peak memory of one call."""
        for run in calls.values():
            run()
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(self.rounds):
            for name, run in calls.items():
                times[name].append(self.seconds(run))
        rows = {name: {"ms": 1e3 * statistics.median(t)} for name, t in times.items()}
        if self.device == "cuda":
            for name, run in calls.items():
                rows[name] |= {"launches": launches(run), "peak_mib": peak(run)}
        return rows

    def training(self, net: nn.Module, batch: int, width: int) -> Callable[[], None]:
        net.train()
        image = torch.randn(batch, 3, 32, width, device=self.device)
        labels = torch.randint(1, CLASSES, (batch, 8), device=self.device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)

        def step() -> None:
            with self.half:
                logits = net(image)
            log = logits.float().log_softmax(2).transpose(0, 1)
            lengths = [torch.full((batch,), n, device=self.device) for n in (log.shape[0], labels.shape[1])]
            nn.functional.ctc_loss(log, labels, lengths[0], lengths[1], zero_infinity=True).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            optimizer.zero_grad()

        return step

    def inference(self, net: nn.Module, batch: int, width: int) -> Callable[[], Tensor]:
        net.eval()
        image = torch.randn(batch, 3, 32, width, device=self.device)

        def run() -> Tensor:
            with torch.inference_mode(), self.half:
                return net(image)

        return run

    def block(self, backend: str, channels: int, batch: int, backward: bool) -> Callable[[], Any]:
        torch.manual_seed(0)
        net = DASSMBlock(channels, op_backend=backend).to(self.device)
        x = torch.randn(batch, channels, 8, 32, device=self.device).contiguous(memory_format=torch.channels_last)

        def run() -> None:
            given = x.detach().requires_grad_(backward)
            with torch.set_grad_enabled(backward), self.half:
                out = net(given)
            if backward:
                out.sum().backward()

        return run


def launches(run: Callable[[], Any]) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        run()
        torch.cuda.synchronize()
    names = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
    return sum(event.count for event in record.key_averages() if event.key in names)


def peak(run: Callable[[], Any]) -> float:
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**20


def show(title: str, rows: dict[str, dict[str, float]]) -> dict[str, Any]:
    ours = rows["native"]["ms"]
    parts = [f"{k} {v['ms']:.1f} ms" + (f" ({v['ms'] / ours:.1f}x)" if k != "native" else "") for k, v in rows.items()]
    parts += [
        f"{k}: {int(v['launches'])} launches, {v['peak_mib']:.0f} MiB" for k, v in rows.items() if "launches" in v
    ]
    print(f"{title:<40} " + ", ".join(parts), flush=True)
    return {"case": title, "rows": rows, "times": {k: v["ms"] / ours for k, v in rows.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256, 512, 1024, 2048], help="pixels")
    parser.add_argument("--no-widths", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    gpu = options.device == "cuda"
    if not gpu:
        ops.keep_freed_memory()
        torch.set_num_threads(options.threads)
    batch = options.batch or (256 if gpu else 16)
    dtype = options.dtype or ("bfloat16" if gpu else "float32")
    bench = Bench(options.device, dtype, options.rounds)
    results = []
    for channels in (64, 128, 256):
        for backward in (False, True):
            way = "forward + backward" if backward else "forward"
            calls = {b: bench.block(b, channels, batch, backward) for b in BACKENDS}
            results.append(show(f"DASSMBlock({channels}) 8x32 {way}", bench.compare(calls)))
    nets = {kind: model(kind).to(options.device) for kind in (*BACKENDS, "attention")}
    calls = {k: bench.inference(net, batch, 128) for k, net in nets.items()}
    results.append(show(f"inference, {batch} of 32x128", bench.compare(calls)))
    steps = {k: bench.training(net, batch, 128) for k, net in nets.items()}
    results.append(show(f"training step, {batch} of 32x128", bench.compare(steps)))
    for width in [] if options.no_widths else options.widths:
        few = max(1, batch * 128 // width)
        calls = {k: bench.inference(nets[k], few, width) for k in ("native", "attention")}
        results.append(show(f"inference, {few} of 32x{width}", bench.compare(calls)))
        steps = {k: bench.training(nets[k], few, width) for k in ("native", "attention")}
        results.append(show(f"training step, {few} of 32x{width}", bench.compare(steps)))
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "extension": native.info}
    machine |= {"gpu": torch.cuda.get_device_name()} if gpu else {"cpu kernels": native.isa}
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(sys.argv),
        "dtype": dtype,
        "machine": machine,
        "results": results,
    }
    out = options.out or Path(__file__).parent / "results" / f"bench_block_{options.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
