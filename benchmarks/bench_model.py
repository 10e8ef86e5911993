#!/usr/bin/env python3
"""Speed of the recogniser on CPU against a plain eager transcription of the same mathematics.

    python benchmarks/bench_model.py [--threads 2] [--rounds 3] [--batch 64] [--out benchmarks/results/bench_model.json]

Models: ``svtrv2_tiny_rctc`` (32x128, 95 classes, OpenOCR's layout) and one ``DASSMBlock`` (64 channels, 8x32).
The baseline below is written for this comparison: NCHW maps, ``permute(...).contiguous()`` around every LayerNorm,
softmax attention spelt out, ``F.linear``; for the block, ``grid_sample`` and a time loop with automatic gradients.
Every variant runs in its own process, rounds are interleaved, the median is reported and the outputs are compared.
``--clock cpu --threads 1`` counts processor time instead of wall time: the figure to trust on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openrec.modeling import build_model
from openrec.modeling.encoders.svtrv2_mamba import DASSMBlock
from openrec.ops import keep_freed_memory

ARCHITECTURE = {
    "Encoder": {
        "name": "SVTRv2LNConvTwo33",
        "use_pos_embed": False,
        "dims": [64, 128, 256],
        "depths": [3, 6, 3],
        "num_heads": [2, 4, 8],
        "mixer": ["Conv*3", "Conv*3, FGlobal, Global*2", "Global*3"],
        "feat2d": True,
    },
    "Decoder": {"name": "RCTCDecoder", "out_channels": 95},
}
VARIANTS = {
    "plain": "eager transcription (baseline)",
    "openrec, system memory": "openrec without keep_freed_memory()",
    "openrec": "openrec as shipped",
    "openrec, bfloat16": "openrec under bfloat16 autocast",
}
TARGETS = {"train_images_per_s": 17, "infer_images_per_s": 88, "infer_one_ms": 18}


class Plain:
    """svtrv2_tiny_rctc written straight from the formulas, on the weights ``p`` of the real model."""

    heads = (2, 4, 8)
    layout = ("CCC", "CCCFGG", "GGG")

    def __init__(self, p: dict[str, Tensor], training: bool):
        self.p, self.training = p, training
        rates = iter(0.1 * i / 11 for i in range(12))
        self.rates = [[next(rates) for _ in stage] for stage in self.layout]

    def norm(self, x: Tensor, name: str, eps: float = 1e-6) -> Tensor:  # tokens
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + eps) * self.p[name + ".weight"] + self.p[name + ".bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.p[name + ".weight"], self.p.get(name + ".bias"))

    def mlp(self, x: Tensor, name: str) -> Tensor:
        return self.linear(F.gelu(self.linear(x, name + ".fc1")), name + ".fc2")

    def keep(self, x: Tensor, rate: float) -> Tensor:
        if not self.training or rate == 0:
            return x
        mask = (torch.rand(x.shape[0], *[1] * (x.ndim - 1)) < 1 - rate).float()
        return x / (1 - rate) * mask

    def attention(self, x: Tensor, name: str, heads: int) -> Tensor:
        b, n, c = x.shape
        qkv = self.linear(x, name + ".qkv").reshape(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (q @ k.transpose(-2, -1) * (c // heads) ** -0.5).softmax(-1)
        return self.linear((weights @ v).transpose(1, 2).reshape(b, n, c), name + ".proj")

    def conv_bn(self, x: Tensor, name: str) -> Tensor:
        x = F.conv2d(x, self.p[name + ".conv.weight"], None, 2, 1)
        stats = [self.p[f"{name}.norm.{s}"] for s in ("running_mean", "running_var", "weight", "bias")]
        return F.gelu(F.batch_norm(x, *stats, self.training, 0.1, 1e-5))

    def conv_block(self, x: Tensor, name: str, heads: int, rate: float, convs: int) -> Tensor:
        b, c, h, w = x.shape
        y = x
        for k in range(convs):
            y = F.conv2d(y, self.p[f"{name}.mixer.{k}.weight"], self.p[f"{name}.mixer.{k}.bias"], 1, 1, 1, heads)
        x = (x + self.keep(y, rate)).flatten(2).transpose(1, 2).contiguous()
        x = self.norm(x, name + ".norm1")
        x = self.norm(x + self.keep(self.mlp(x, name + ".mlp"), rate), name + ".norm2")
        return x.transpose(1, 2).contiguous().view(b, c, h, w)

    def block(self, x: Tensor, name: str, heads: int, rate: float) -> Tensor:
        x = self.norm(x + self.keep(self.attention(x, name + ".mixer", heads), rate), name + ".norm1")
        return self.norm(x + self.keep(self.mlp(x, name + ".mlp"), rate), name + ".norm2")

    def encoder(self, x: Tensor) -> Tensor:
        for i in range(2):
            x = self.conv_bn(x, f"encoder.pope.patch_embed.{i}")
        h, w = x.shape[2:]
        for s, stage in enumerate(self.layout):
            index = 0
            for j, kind in enumerate(stage):
                if kind == "F":
                    x, index = x.flatten(2).transpose(1, 2).contiguous(), index + 1
                name, rate = f"encoder.stages.{s}.blocks.{index}", self.rates[s][j]
                if kind == "C":
                    x = self.conv_block(x, name, self.heads[s], rate, 2)
                else:
                    x = self.block(x, name, self.heads[s], rate)
                index += 1
            if s < 2:
                name = f"encoder.stages.{s}.downsample"
                x = x if x.ndim == 4 else x.transpose(1, 2).reshape(x.shape[0], -1, h, w)
                x = F.conv2d(x, self.p[name + ".conv.weight"], self.p[name + ".conv.bias"], (1 + s, 1), 1)
                h, w = x.shape[2:]
                tokens = self.norm(x.flatten(2).transpose(1, 2).contiguous(), name + ".norm", 1e-5)
                x = tokens if s == 1 else tokens.transpose(1, 2).contiguous().view(x.shape)
        return x.transpose(1, 2).contiguous().view(x.shape[0], -1, h, w)

    def __call__(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        b, c, h, w = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(b * h, w, c)
        name = "decoder.w_atten_block"
        rows = rows + self.attention(self.norm(rows, name + ".norm1", 1e-5), name + ".attn", c // 32)
        rows = rows + self.mlp(self.norm(rows, name + ".norm2", 1e-5), name + ".mlp")
        k, v = self.linear(rows.reshape(b, h, w, c), "decoder.fc_kv").split(c, -1)
        weights = (k * self.p["decoder.char_token"].view(c)).sum(-1).softmax(1)  # over the height
        logits = self.linear((weights.unsqueeze(-1) * v).sum(1), "decoder.fc")
        return logits if self.training else logits.softmax(-1)


def ctc(logits: Tensor, labels: Tensor) -> Tensor:
    lengths = torch.full((len(logits),), logits.shape[1]), torch.full((len(logits),), labels.shape[1])
    return F.ctc_loss(logits.log_softmax(2).transpose(0, 1), labels, *lengths, zero_infinity=True)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS["wall"]


def median_seconds(run: Callable[[], object], seconds: float) -> float:
    """Median time of ``run``, repeated for about ``seconds`` of wall time after two warm-up calls."""
    run(), run()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = clock()
        run()
        times.append(clock() - start)
    return statistics.median(times)


def run_variant(variant: str, batch: int, threads: int, seconds: float) -> dict[str, float]:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if variant in ("openrec", "openrec, bfloat16"):
        keep_freed_memory()
    model = build_model(ARCHITECTURE)
    image, labels = torch.randn(batch, 3, 32, 128), torch.randint(1, 95, (batch, 8))
    half = torch.autocast("cpu", torch.bfloat16, enabled=variant.endswith("bfloat16"))
    if variant == "plain":
        weights = dict(model.named_parameters()) | dict(model.named_buffers())
        train, infer = Plain(weights, True), Plain(weights, False)
    else:
        train = infer = model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with half:
            logits = train(image)
        ctc(logits.float(), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()

    def infer_batch(x: Tensor) -> Tensor:
        with half:
            return infer(x)

    result = {}
    model.eval()
    with torch.inference_mode():
        result["checksum"] = infer_batch(image[:4]).float().square().sum().item()
        result["infer_images_per_s"] = batch / median_seconds(lambda: infer_batch(image), seconds)
        result["infer_one_ms"] = 1e3 * median_seconds(lambda: infer_batch(image[:1]), seconds / 2)
    model.train()
    result["train_images_per_s"] = batch / median_seconds(step, 2 * seconds)
    if not variant.endswith("bfloat16"):
        result["dassm_block_ms"] = dassm_block_ms(variant == "plain", batch, seconds)
    return result


def dassm_block_ms(plain: bool, batch: int, seconds: float) -> float:
    """Forward and backward of one block; the baseline samples with grid_sample and loops over time on NCHW maps."""
    block = DASSMBlock(64, op_backend="reference" if plain else "auto")
    x = torch.randn(batch, 64, 8, 32)
    x = x if plain else x.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        given = x.detach().requires_grad_()
        out = block(given)
        (out.contiguous() if plain else out).square().sum().backward()
        block.zero_grad()

    return 1e3 * median_seconds(step, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="per measurement")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bench_model.json")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        global clock
        clock = CLOCKS[options.clock]
        print(json.dumps(run_variant(options.variant, options.batch, options.threads, options.seconds)))
        return
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name in VARIANTS:
            command = [sys.executable, __file__, "--variant", name, "--threads", str(options.threads)]
            command += ["--batch", str(options.batch), "--seconds", str(options.seconds)]
            command += ["--clock", options.clock]
            environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            rounds[name].append(json.loads(output.splitlines()[-1]))
            print(name, {k: round(v, 2) for k, v in rounds[name][-1].items()}, flush=True)
    report(rounds, options)


def report(rounds: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    table = {
        name: {key: statistics.median(r[key] for r in runs) for key in runs[0]} for name, runs in rounds.items() if runs
    }
    ours, plain = table["openrec"], table["plain"]
    assert abs(ours["checksum"] - plain["checksum"]) < 1e-3 * plain["checksum"], "the two models disagree"
    result = {
        "date": time.strftime("%Y-%m-%d"),
        "what": "svtrv2_tiny_rctc 32x128 fp32 training step (CTC, clip, AdamW) and inference; DASSMBlock fwd + bwd",
        "command": f"python benchmarks/bench_model.py --threads {options.threads} --batch {options.batch} "
        f"--clock {options.clock}",
        "clock": options.clock,
        "machine": {"cpu": cpu_name(), "threads": options.threads, "torch": torch.__version__},
        "load_average_at_end": os.getloadavg(),
        "variants": VARIANTS,
        "median_of_rounds": table,
        "rounds": rounds,
        "target": TARGETS,
        "times_faster_than_plain": {
            "train": ours["train_images_per_s"] / plain["train_images_per_s"],
            "infer": ours["infer_images_per_s"] / plain["infer_images_per_s"],
            "infer_one": plain["infer_one_ms"] / ours["infer_one_ms"],
            "dassm_block": plain["dassm_block_ms"] / ours["dassm_block_ms"],
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: result[k] for k in ("median_of_rounds", "times_faster_than_plain", "target")}, indent=1))


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == "__main__":
    main()
