"""What a run's own files tell: settings, seed, steps, hours, learning curve."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrec.config import load_config
from openrec.errors import DataError


def stage(folder: str | Path, command: str = "", commit: str = "") -> dict[str, Any]:
    """Facts of one run directory (``config.yml`` and ``log.jsonl``).

    Args:
        command, commit: that started it, and of this repository; empty: left open.

    Raises:
        DataError: one of the files is missing or damaged.
    """
    folder = Path(folder).expanduser()
    rows = _rows(folder / "log.jsonl")
    config = load_config(folder / "config.yml")
    options, train = config["Global"], config["Train"]
    data = train["dataset"]
    done = [r for r in rows if r["event"] in ("train", "end", "pause")]
    batch = (train.get("sampler") or {}).get("first_bs") or train["loader"].get("batch_size_per_card", 1)
    return {
        "command": command, "commit": commit, "seed": options["seed"],
        "steps": max((r["step"] for r in done), default=0),
        "batch": batch * int(options["accumulation_steps"]),
        "hours": round(_seconds(rows) / 3600, 2), "calls": sum(r["event"] == "start" for r in rows),
        "torch": next((r["torch"] for r in rows if r["event"] == "start"), ""),
        "optimizer": dict(config["Optimizer"]), "schedule": dict(config["LRScheduler"]),
        "ema_decay": options["ema_decay"] if options["use_ema"] else None,
        "data": {k: data[k] for k in ("name", "language", "max_length", "font_split", "real_share") if k in data},
        "real": bool(data.get("real")), "sources": _sources(folder / "train.log"),
        "curve": [{"step": r["step"], "acc": round(r["acc"], 4)} for r in rows if r["event"] == "eval"],
    }  # fmt: skip


def _sources(path: Path) -> list[str]:
    """What words were rendered with in training, from the first start's summary."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    train = text.split("valid dataloader", 1)[0].split("train dataloader", 1)[0]
    return re.findall(r"(\d+ font faces in \d+ families|words from .+)$", train, re.M)


def _seconds(rows: Sequence[dict[str, Any]]) -> float:
    """Wall time of training steps: every line of the log has that of the steps since the last one."""
    return sum(float(row.get("time", 0)) for row in rows if row["event"] == "train")


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f'"{path}" cannot be read ({error}). Give the output_dir of a run.') from error


def described(one: dict[str, Any]) -> str:
    """One line on a stage."""
    schedule = one["schedule"]["name"] + (
        f", warm-up {w:g} epochs" if (w := one["schedule"].get("warmup_epoch")) else ""
    )
    words = f"about {one['steps'] * one['batch']:,} words" + (", rendered and real" if one["real"] else ", rendered")
    ema = f"; averaged weights, decay {one['ema_decay']}" if one["ema_decay"] else ""
    return (
        f"{one['steps']:,} steps of {one['batch']} ({words}), {one['hours']:g} h in {one['calls']} calls, "
        f"seed {one['seed']}; {one['optimizer']['name']}, rate {one['optimizer']['lr']:g}, {schedule}{ema}"
    )


def command_of(config: str, overrides: Sequence[str]) -> str:
    """The command line that trains ``config``."""
    words = ["python", "tools/train_rec.py", "-c", config, *(["-o", *overrides] if overrides else [])]
    return shlex.join(words)
