"""The command line of ``tools/eval_rec_all_{en,ch,long}.py``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openrec.config import add_arguments, load_config
from openrec.engine.benchmark import config_of_checkpoint, run_benchmark
from openrec.engine.benchmark_sets import find_sets
from openrec.engine.benchmark_tables import csv_name, markdown, write_csv
from openrec.engine.distributed import launched_rank
from openrec.engine.evaluation import checkpoint_of
from openrec.engine.latency import latency_table, machine, measure
from openrec.errors import ConfigError
from openrec.recognizer import load


def parser(description: str | None, simple: bool = False) -> argparse.ArgumentParser:
    """The arguments of a script; ``-c`` and ``-o`` as in OpenOCR."""
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=True
    )
    add_arguments(arguments, required=False)
    arguments.add_argument("--model", help="checkpoint that holds its config, instead of -c")
    arguments.add_argument("--root", default="..", help="directory that holds the sets (default: %(default)s)")
    arguments.add_argument("--sets", nargs="*", default=[], metavar="NAME=PATH", help="places of single sets")
    arguments.add_argument("--only", nargs="*", default=[], metavar="NAME", help="groups or sets to evaluate")
    arguments.add_argument("--output", help="directory for the tables (default: Global.output_dir)")
    arguments.add_argument("--latency", action="store_true", help="measure speed too; needs a quiet machine")
    if simple:
        arguments.add_argument("--simple", action="store_true", help="list files of pictures instead of an LMDB")
    return arguments


def run(a: argparse.Namespace, groups: Mapping[str, Sequence[str]], kind: str) -> Path | None:
    """Evaluate, write the CSV files and the Markdown table, print the table; returns its path (None but on rank 0)."""
    config = _config(a)
    options = config["Global"]
    places = find_sets(groups, a.root, a.sets, a.only)
    benchmark = run_benchmark(config, places, kind)
    if launched_rank() != 0:  # all processes evaluate, one writes
        return None
    output = Path(a.output or str(options["output_dir"]).rstrip("/"))
    for rule in (True, False):
        write_csv(benchmark, csv_name(output, kind, rule), kind, rule)
    text = markdown(benchmark)
    if a.latency:
        text += "\n" + _latency(config, checkpoint_of(options))
    page = csv_name(output, kind, True).with_suffix(".md")
    page.write_text(text, encoding="utf-8")
    print(text, end="")
    print(f"\ntables: {page}, {csv_name(output, kind, True)}, {csv_name(output, kind, False)}")
    return page


def _config(a: argparse.Namespace) -> dict[str, Any]:
    if a.config:
        config = load_config(a.config, [*a.opt, *([f"Global.pretrained_model={a.model}"] if a.model else [])])
        return config
    if not a.model:
        raise ConfigError("expected -c CONFIG, or --model CHECKPOINT that holds its config.")
    if a.opt:
        raise ConfigError("-o changes a config; give one with -c.")
    return config_of_checkpoint(a.model, {"output_dir": str(Path(a.model).parent)})


def _latency(config: Mapping[str, Any], file: Path) -> str:
    device = "auto" if config["Global"]["device"] == "gpu" else config["Global"]["device"]
    recognizer = load(file, config=config, device=device)
    shapes = recognizer.preprocess.shapes() or [(128, 32)]
    channels = int(config["Architecture"].get("in_channels", 3))
    rows = measure(recognizer.backend.run, shapes, channels=channels)
    return latency_table(rows, machine(recognizer.backend.device))
