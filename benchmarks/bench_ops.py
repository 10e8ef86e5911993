#!/usr/bin/env python3
"""Speed of every operator, forward and backward, against its reference and against a copy of the bytes it must move.

    python benchmarks/bench_ops.py                       # CPU, one thread, the shape of the CPU goals
    python benchmarks/bench_ops.py --keep-freed          # the same with freed memory kept, as the trainer runs
    python benchmarks/bench_ops.py --device cuda         # GPU, shapes S1-S7, fp32 and bf16
    options: --shapes S2 S5 --dtypes float32 bfloat16 --ops scan dcnv3 --isa avx2 --out results/name.json --plot

Rivals: "loop" is the scan as Mamba's paper writes it, step by step over [B, D, L], its only layout; "reference"
is the definition beside the operator (for dcnv3 grid_sample), in the layout of the case; "torch" is the fastest form
that plain PyTorch allows, which runs where nothing is compiled.

Floor bytes count every array once (csrc/README.md). The copy reads and writes that many bytes in total. "share" is the
copy's time over the operator's: 1 would be a kernel that costs no more than moving its data. Medians of interleaved
rounds; on CPU the thread's processor time, on GPU events with the second-level cache flushed before every call.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openrec import ops
from openrec.ops._load import native

SHAPES = {  # batch, channels, height, width
    "CPU": (64, 128, 8, 32),
    "S1": (256, 64, 8, 32),
    "S2": (256, 128, 8, 32),
    "S3": (128, 64, 8, 128),
    "S4": (256, 256, 4, 32),
    "S5": (512, 128, 8, 64),
    "S6": (512, 384, 4, 64),
    "S7": (128, 384, 2, 64),
}
GROUP = 16  # channels per sampling group


@dataclass
class Work:
    """One operator on one shape: tensors by name, calls of the kernel and of its rivals, floor elements."""

    tensors: dict[str, Tensor]
    run: Callable[..., Tensor]
    rivals: dict[str, Callable[..., Tensor]]
    floor_forward: float  # elements of the storage type
    floor_backward: float
    own: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # tensors of a rival that wants another layout


def scan_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """The recurrence step by step: u, delta [B, D, L]; A [D, N]; B, C [B, N, L]; D, delta_bias [D]."""
    delta = functional.softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", delta, A))
    x = torch.einsum("bdl,bnl,bdl->bdln", delta, B, u)
    h, ys = torch.zeros_like(x[:, :, 0]), []
    for t in range(u.shape[2]):
        h = decay[:, :, t] * h + x[:, :, t]
        ys.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return torch.stack(ys, -1) + D[:, None] * u


def scan(shape: tuple[int, ...], n: int, channels_last: bool) -> Callable[[torch.dtype, str], Work]:
    b, c, h, w = shape
    length = h * w

    def make(dtype: torch.dtype, device: str) -> Work:
        def seq(scale: float = 1.0, shift: float = 0.0) -> Tensor:
            t = torch.randn(b, length, c, device=device) * scale + shift
            return t.to(dtype) if channels_last else t.transpose(1, 2).contiguous().to(dtype)

        def maps() -> Tensor:
            return torch.randn((b, length, n) if channels_last else (b, n, length), device=device).to(dtype)

        tensors = {"u": seq(), "delta": seq(1.0, -2.0), "A": -torch.rand(c, n, device=device) - 0.5}
        tensors |= {"B": maps(), "C": maps(), "D": torch.randn(c, device=device)}
        tensors["delta_bias"] = torch.randn(c, device=device) * 0.1
        options = {"delta_softplus": True, "channels_last": channels_last}
        elements = b * c * length
        loop_tensors = {  # leaves of its own: the loop has one layout, and this is the one it is fastest in
            k: (t.transpose(1, 2).contiguous() if channels_last and t.ndim == 3 else t).requires_grad_()
            for k, t in tensors.items()
        }
        return Work(
            tensors,
            lambda **t: ops.selective_scan(**t, **options, backend="native"),
            {
                **({"loop": scan_loop} if n == 1 else {}),  # half a minute per call with 16 states
                "reference": lambda **t: ops.selective_scan_ref(**t, **options),
                "torch": lambda **t: ops.selective_scan(**t, **options, backend="torch"),
            },
            3 * elements + 2 * n * b * length,
            5 * elements + 4 * n * b * length,
            {"loop": loop_tensors},
        )

    return make


def dcnv3(shape: tuple[int, ...], kernel: int) -> Callable[[torch.dtype, str], Work]:
    b, c, h, w = shape
    group, points = c // GROUP, kernel * kernel

    def make(dtype: torch.dtype, device: str) -> Work:
        tensors = {
            "input": torch.randn(b, h, w, c, device=device).to(dtype),
            "offset": (torch.randn(b, h, w, group * points * 2, device=device) * 0.5).to(dtype),
        }
        if kernel > 1:
            tensors["mask"] = torch.rand(b, h, w, group * points, device=device).to(dtype)
        options = {"kernel_size": kernel, "pad": kernel // 2, "group": group}
        elements, extra = b * c * h * w, (3 if kernel > 1 else 2) * points / GROUP
        return Work(
            tensors,
            lambda **t: ops.dcnv3(**t, **options, backend="native"),
            {
                "reference": lambda **t: ops.dcnv3_ref(**t, **options),  # grid_sample
                "torch": lambda **t: ops.dcnv3(**t, **options, backend="torch"),
            },
            (2 + extra) * elements,
            (3 + 2 * extra) * elements,
        )

    return make


def deform_sample(shape: tuple[int, ...], points: int) -> Callable[[torch.dtype, str], Work]:
    b, c, h, w = shape
    heads = c // GROUP

    def make(dtype: torch.dtype, device: str) -> Work:
        tensors = {
            "value": torch.randn(b, heads, GROUP, h, w, device=device).to(dtype),
            "loc": torch.rand(b, heads, h * w, points, 2, device=device),
            "weight": torch.rand(b, heads, h * w, points, device=device),
        }
        elements, extra = b * c * h * w, 3 * points / GROUP * 4 / dtype.itemsize
        return Work(
            tensors,
            lambda **t: ops.deform_sample(**t, backend="native"),
            {"reference": lambda **t: ops.deform_sample_ref(**t)},
            (2 + extra) * elements,
            (3 + 2 * extra) * elements,
        )

    return make


def causal_conv1d(shape: tuple[int, ...]) -> Callable[[torch.dtype, str], Work]:
    b, c, h, w = shape

    def make(dtype: torch.dtype, device: str) -> Work:
        tensors = {
            "x": torch.randn(b, c, h * w, device=device).to(dtype),
            "weight": torch.randn(c, 4, device=device).to(dtype),
        }
        elements = b * c * h * w
        return Work(
            tensors,
            lambda **t: ops.causal_conv1d(**t, activation="silu"),
            {"reference": lambda **t: ops.causal_conv1d_ref(**t, activation="silu")},
            2 * elements,
            3 * elements,
        )

    return make


def workloads(shape: tuple[int, ...]) -> dict[str, Callable[[torch.dtype, str], Work]]:
    return {
        "scan, channels last": scan(shape, 1, True),
        "scan, [B, D, L]": scan(shape, 1, False),
        "scan N=16": scan(shape, 16, True),
        "dcnv3 K=1": dcnv3(shape, 1),
        "dcnv3 K=3, mask": dcnv3(shape, 3),
        "deform_sample P=4": deform_sample(shape, 4),
        "causal_conv1d": causal_conv1d(shape),
    }


class Clock:
    """Seconds of one call."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        # Twice a large second-level cache, so that every call starts with its data in main memory.
        self.flush = torch.empty(256 << 20, dtype=torch.uint8, device=device) if self.cuda else None

    def __call__(self, run: Callable[[], Any]) -> float:
        if not self.cuda:
            start = time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
            run()
            return (time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()) - start
        assert self.flush is not None
        self.flush.zero_()
        torch.cuda._sleep(4_000_000)  # about 2 ms: all launches are queued before the first starts
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        run()
        events[1].record()
        torch.cuda.synchronize()
        return events[0].elapsed_time(events[1]) / 1e3


def copy_of(bytes_moved: float, device: str) -> Callable[[], Any]:
    source = torch.ones(max(int(bytes_moved / 2), 1), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def measure(work: Work, dtype: torch.dtype, device: str, seconds: float, slow: bool) -> dict[str, float]:
    """Milliseconds of kernel, rivals and copies, forward (without gradients) and backward."""
    clock, calls = Clock(device), {"native": work.run, **(work.rivals if slow else {})}
    jobs: dict[str, Callable[[], float]] = {}
    shared = {k: t.detach().requires_grad_() for k, t in work.tensors.items()}
    for name, call in calls.items():
        leaves = work.own.get(name, shared)

        def forward(call: Callable[..., Tensor] = call, leaves: dict[str, Tensor] = leaves) -> float:
            with torch.no_grad():
                return clock(lambda: call(**leaves))

        def backward(call: Callable[..., Tensor] = call, leaves: dict[str, Tensor] = leaves) -> float:
            out = call(**leaves)
            grad = torch.ones_like(out)
            return clock(lambda: torch.autograd.grad(out, list(leaves.values()), grad))

        jobs[f"{name} forward"], jobs[f"{name} backward"] = forward, backward
    for way, floor in (("forward", work.floor_forward), ("backward", work.floor_backward)):
        jobs[f"copy {way}"] = partial(clock, copy_of(floor * dtype.itemsize, device))
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    end = time.perf_counter() + seconds
    while len(times["copy forward"]) < 3 or time.perf_counter() < end:  # interleaved: all see the same machine
        for name, job in jobs.items():
            times[name].append(job())
    return {name: 1e3 * statistics.median(t) for name, t in times.items()}


def report_line(case: str, ms: dict[str, float]) -> dict[str, Any]:
    row: dict[str, Any] = {"case": case, "ms": ms}
    text = f"{case:<44}"
    for way in ("forward", "backward"):
        ours = ms[f"native {way}"]
        row[f"{way} share of copy"] = ms[f"copy {way}"] / ours
        text += f" {way} {ours:8.3f} ms, copy {ms[f'copy {way}']:7.3f} ({row[f'{way} share of copy']:4.0%})"
        for rival in ("loop", "reference", "torch"):
            if f"{rival} {way}" in ms:
                row[f"{way} times faster than {rival}"] = ms[f"{rival} {way}"] / ours
                text += f", {row[f'{way} times faster than {rival}']:6.1f}x {rival}"
        text += ";" if way == "forward" else ""
    print(text, flush=True)
    return row


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.35 * len(rows) + 1.5))
    for offset, way in ((-0.2, "forward"), (0.2, "backward")):
        axes.barh([i + offset for i in range(len(rows))], [r[f"{way} share of copy"] for r in rows], 0.4, label=way)
    axes.set_yticks(range(len(rows)), [r["case"] for r in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("share of the copy rate on floor bytes")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--ops", nargs="+", help="parts of the operators' names")
    parser.add_argument("--isa", help="force an instruction set of the CPU kernels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="per case")
    parser.add_argument("--keep-freed", action="store_true", help="keep freed memory, as the trainer does (CPU)")
    parser.add_argument("--no-reference", action="store_true", help="skip the slow rivals")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", action="store_true", help="also draw the shares (needs matplotlib)")
    options = parser.parse_args()
    gpu = options.device == "cuda"
    if not gpu:
        if options.keep_freed:
            ops.keep_freed_memory()
        torch.set_num_threads(options.threads)
    if options.isa:
        native.force_isa(options.isa)
    rows = []
    for shape in options.shapes or ([s for s in SHAPES if s != "CPU"] if gpu else ["CPU"]):
        for dtype_name in options.dtypes or (["float32", "bfloat16"] if gpu else ["float32"]):
            dtype = getattr(torch, dtype_name)
            for name, make in workloads(SHAPES[shape]).items():
                if options.ops and not any(part in name for part in options.ops):
                    continue
                work = make(dtype, options.device)
                ms = measure(work, dtype, options.device, options.seconds, not options.no_reference)
                rows.append(report_line(f"{shape} {dtype_name} {name}", ms))
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join(sys.argv),
        "machine": machine(gpu),
        "shapes": SHAPES,
        "rows": rows,
    }
    out = options.out or Path(__file__).parent / "results" / f"bench_ops_{options.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        plot(rows, out.with_suffix(".png"))


def machine(gpu: bool) -> dict[str, Any]:
    facts = {
        "torch": torch.__version__,
        "extension": native.info,
        "cpu kernels": native.isa,
        "threads": torch.get_num_threads(),
    }
    info = Path("/proc/cpuinfo")
    names = (
        [x for x in info.read_text(encoding="utf-8").splitlines() if x.startswith("model name")]
        if info.exists()
        else []
    )
    facts["cpu"] = names[0].split(":", 1)[1].strip() if names else platform.processor()
    return facts | ({"gpu": torch.cuda.get_device_name()} if gpu else {})


if __name__ == "__main__":
    main()
