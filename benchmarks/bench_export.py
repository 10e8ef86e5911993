"""ONNX beside PyTorch: same texts, largest difference, operators, and time per picture on CPU.

    python benchmarks/bench_export.py --models output/run/best.pth configs/rec/satrn/satrn_tiny.yml --images crops/

A YAML stands for its model with random weights (a seed), whose classifier is scaled so that it reads something. Times
are medians over ``--rounds`` rounds, both sides in turn, after one warm-up call each, with ``--threads`` threads. Rows
of other models in the result file stay.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from openrec.config import load_config, resolve_charset
from openrec.export import onnx_file, verify
from openrec.export.onnx_session import OnnxBackend
from openrec.export.subject import Subject
from openrec.reading.backends import TorchBackend
from openrec.reading.loading import ModelCard
from openrec.reading.preprocessing import Preprocessor
from openrec.recognizer import Recognizer, load

RESULTS = Path(__file__).parent / "results"


def recognizer(source: str, branch: str = "auto") -> Recognizer:
    """Of a checkpoint, or of a YAML with random weights."""
    if not source.endswith((".yml", ".yaml")):
        return load(source, device="cpu", branch=branch)
    config = load_config(source)
    card = ModelCard(config, resolve_charset(config), Preprocessor.from_config(config))
    torch.manual_seed(0)
    model = card.build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("decoder.") and parameter.ndim == 2 and len(card.charset) <= parameter.shape[0]:
                parameter.mul_(8 if parameter.shape[0] <= len(card.charset) + 5 else 1)
    return Recognizer(card, TorchBackend(model, torch.device("cpu")), branch=branch, name=source)


def measure(source: str, images: Any, count: int, rounds: int, batches: list[int]) -> dict[str, Any]:
    """One row of the table."""
    reader = recognizer(source)
    subject = Subject(reader)
    sizes = subject.sizes()
    start = time.perf_counter()
    graph = onnx_file.make_graph(subject, sizes)
    made = time.perf_counter() - start
    backend = OnnxBackend(graph.content(), torch.device("cpu"))
    found = verify.compare(subject, backend.run, verify.pictures(images, reader.charset, count), sizes)
    width, height = (reader.preprocess.shapes() or [(sizes.width[1], sizes.height[1])])[-1]
    row: dict[str, Any] = {
        "model": "/".join(Path(source).parts[-2:]),
        "weights": "random" if source.endswith((".yml", ".yaml")) else "trained",
        "parameters": sum(p.numel() for p in subject.parameters()),
        "texts": f"{found.texts} of {found.pictures}",
        "largest_difference": found.largest,
        "sizes": sorted({f"{h}x{w}" for h, w in found.widths}),
        "domains": sorted({n.domain or "ai.onnx" for n in graph.proto.graph.node}),
        "operators": dict(Counter(n.op_type for n in graph.proto.graph.node).most_common()),
        "export_seconds": round(made, 1),
        "size": f"{height}x{width}",
    }
    for batch in batches:
        pictures = np.random.default_rng(0).uniform(-1, 1, (batch, 3, height, width)).astype(np.float32)
        row[f"ms_batch_{batch}"] = _times(reader.backend.run, backend.run, pictures, rounds)
    return row


def _times(ours: Any, theirs: Any, pictures: np.ndarray, rounds: int) -> dict[str, float]:
    """Milliseconds per picture."""
    taken: dict[str, list[float]] = {"pytorch": [], "onnxruntime": []}
    for number in range(rounds + 1):
        for name, run in (("pytorch", ours), ("onnxruntime", theirs)):
            start = time.perf_counter()
            run(pictures)
            if number:
                taken[name].append(1000 * (time.perf_counter() - start) / len(pictures))
    return {name: round(statistics.median(values), 3) for name, values in taken.items()}


def table(rows: list[dict[str, Any]], batches: list[int]) -> str:
    """Markdown."""
    head = ["model", "weights", "parameters", "texts equal", "largest difference", "input"]
    head += [f"{name}, batch {b} (ms)" for b in batches for name in ("PyTorch", "onnxruntime")]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["model"], row["weights"], f"{row['parameters'] / 1e6:.2f} M", row["texts"]]
        cells += [f"{row['largest_difference']:.1e}", row["size"]]
        cells += [f"{row[f'ms_batch_{b}'][name]:.2f}" for b in batches for name in ("pytorch", "onnxruntime")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="checkpoints, or YAMLs for random weights")
    parser.add_argument("--images", nargs="+", help="pictures to compare on (default: rendered words)")
    parser.add_argument("--count", type=int, default=200, help="pictures (default: 200)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="export", help="of the result files (default: export)")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    machine = {"date": f"{datetime.date.today()}", "torch": torch.__version__, "threads": a.threads}
    head = f"# ONNX beside PyTorch\n\n{datetime.date.today()}, {a.threads} thread(s), torch {torch.__version__}\n\n"
    file = RESULTS / f"{a.name}.json"
    for source in a.models:
        row = measure(source, a.images, a.count, a.rounds, a.batches)
        print(table([row], a.batches).splitlines()[-1], flush=True)
        rows = [r for r in json.loads(file.read_text())["rows"] if r["model"] != row["model"]] if file.exists() else []
        rows.append(row)
        file.write_text(json.dumps({**machine, "cpus": os.cpu_count(), "rows": rows}, indent=1) + "\n")
        file.with_suffix(".md").write_text(head + table(rows, a.batches) + "\n")


if __name__ == "__main__":
    main()
