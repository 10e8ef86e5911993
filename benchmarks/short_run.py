"""Learning curve and throughput of a training run, from its own log: what a recipe did in the time it was given.

    python benchmarks/short_run.py RUN --command "python tools/train_rec.py ..." --commit COMMIT --output NAME

Reads ``log.jsonl`` and ``config.yml`` of the run; trains nothing. JSON, Markdown and a picture go to
``benchmarks/results/NAME``; runs of ``--beside`` are drawn into the picture, too, under their folders' names.
Throughput is the median over the log's windows, because the first windows after a start compile and fill caches.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import yaml

from openrec import __version__
from openrec.curves import plot_logs, read_log
from openrec.shipping.score import cpu_name

ROOT = Path(__file__).resolve().parents[1]


def summary(run: Path, every: int) -> dict[str, Any]:
    """Numbers of the run: loss at every ``every``-th step, evaluations, words per second, time spent on steps."""
    log, config = read_log(run), yaml.safe_load((run / "config.yml").read_text(encoding="utf-8"))
    train, evals = log.rows["train"], log.rows.get("eval", [])
    losses: dict[int, list[float]] = {}
    for row in train:
        losses.setdefault(-(-row["step"] // every) * every, []).append(row["loss"])
    last = train[-1]["step"]
    return {
        "steps": last,
        "words": sum(round(r["ips"] * r["time"]) for r in train),
        "minutes": round(sum(r["time"] for r in train) / 60, 1),
        "starts": len(log.rows.get("start", [])),
        "seed": config["Global"]["seed"],
        "words_per_second": round(statistics.median(r["ips"] for r in train), 1),
        "loss": {min(step, last): round(statistics.fmean(values), 2) for step, values in losses.items()},
        "evaluation": {r["step"]: {k: r[k] for k in ("correct", "num_samples", "norm_edit_dis")} for r in evals},
    }  # fmt: skip


def write(found: dict[str, Any], about: dict[str, Any], output: Path) -> None:
    output.with_suffix(".json").write_text(json.dumps({"about": about, "run": found}, indent=1) + "\n", "utf-8")
    lines = [
        f"Measured {about['date']}, openrec {about['openrec']} at {about['commit']}, torch {about['torch']}, "
        f"{about['machine']}; seed {found['seed']}.", "",
        f"    {about['command']}", "",
        f"{found['steps']:,} steps, {found['words']:,} rendered words, {found['minutes']} minutes of steps and "
        f"evaluations in {found['starts']} starts; {found['words_per_second']} words per second (median window).", "",
        "| up to step | loss | held-out words read | 1-NED |", "|---:|---:|---:|---:|",
    ]  # fmt: skip
    for step, loss in found["loss"].items():
        e = found["evaluation"].get(step)
        lines.append(
            f"| {step} | {loss} | {e['correct']} of {e['num_samples']} | {e['norm_edit_dis']:.3f} |"
            if e
            else f"| {step} | {loss} | | |"
        )
    output.with_suffix(".md").write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="directory of the run")
    parser.add_argument("--command", required=True, help="command that trained it, for the record")
    parser.add_argument("--commit", required=True, help="commit that it ran at, for the record")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="other runs, for the picture")
    parser.add_argument("--every", type=int, default=250, help="steps per row of the table (default: %(default)s)")
    parser.add_argument("--output", required=True, help="name under benchmarks/results/")
    options = parser.parse_args()
    output = ROOT / "benchmarks" / "results" / options.output
    start = read_log(options.run).rows["start"][-1]
    about = {
        "date": time.strftime("%Y-%m-%d"), "openrec": __version__, "commit": options.commit, "torch": start["torch"],
        "machine": f"{os.cpu_count()} cores, {cpu_name()}", "command": options.command,
    }  # fmt: skip
    write(summary(options.run, options.every), about, output)
    plot_logs([options.run, *options.beside], output.with_suffix(".png"))
    print(output.with_suffix(".md").read_text("utf-8"))


if __name__ == "__main__":
    main()
