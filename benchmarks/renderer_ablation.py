#!/usr/bin/env python3
"""What each part of the renderer is worth: one small model per variant, the same CPU time, scored on real words.

    python benchmarks/renderer_ablation.py --ic15 DIR --real-words DIR --work DIR --minutes 20
    python benchmarks/renderer_ablation.py ... --start weights.pth   every variant goes on from these weights
    python benchmarks/renderer_ablation.py ... --dry-run             two steps of each variant, nothing is written

A variant leaves out one part (``openrec.data.render.switches``), or changes fonts, words or strength. Every training
takes ``--minutes`` of CPU time of one thread, rendering included, with a rate that does not fall, and is scored with
averaged weights on the held-out tenth of ``--ic15``, on all of it (no photograph is trained on, and only many words
show small differences) and on the Latin words of ``--real-words``. A call that is stopped (Ctrl-C) continues with the
same command; finished variants are not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml

from openrec import __version__
from openrec.config import load_config
from openrec.data.render.switches import SWITCHES
from openrec.recognizer import load
from openrec.shipping.score import cpu_name, score
from openrec.shipping.wordsets import WordSet, all_words, held_out_words, script_of

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/rec/svtrv2/svtrv2_mamba_tiny_en.yml"

# name -> what changes in Train.dataset
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    **{f"without {name}": {"without": [name]} for name in SWITCHES},
    "plain pictures": {"strength": 0.0},
    "half the strength": {"strength": 0.5},
    "no camera": {"without": ["blur", "low_resolution", "noise", "jpeg", "light"]},
    "one font family": {"fonts": ["DejaVu Sans"]},
    "no random strings": {"random_share": 0.0},
    "many random strings": {"random_share": 0.5},
    "pseudo-words": {"words": "model"},
    "random strings alone": {"words": "random"},
}


def write_config(variant: str, seed: int, options: argparse.Namespace, folder: Path) -> Path:
    """The whole config of a variant as a file."""
    config = {key: value for key, value in load_config(ROOT / options.config).items() if key[0].isupper()}
    config["Global"] |= {
        "output_dir": str(folder), "seed": seed, "epoch_num": 10000, "max_text_length": 20, "eval_epoch_step": None,
        "use_ema": True, "ema_decay": 0.999, "use_amp": "auto", "save_latest_step": 200, "print_batch_step": 50,
        "progress_bar": False, "needs": None, "max_steps": 2 if options.dry_run else None,
        "pretrained_model": str(options.start.resolve()) if options.start else None,
    }  # fmt: skip
    config["LRScheduler"] = {"name": "ConstLR", "warmup_epoch": 0.1}
    config["Train"]["dataset"] |= {"max_length": 16, **VARIANTS[variant]}
    config["Train"]["loader"]["num_workers"] = 0  # its rendering counts as work, too
    config["Eval"]["dataset"]["size"] = 100
    path = folder / "ablation.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def train(path: Path, folder: Path, minutes: float) -> float:
    """Train until the CPU time of all calls together is spent; the seconds that were.

    Raises:
        SystemExit: the training failed, or this call was stopped.
    """
    ledger = folder / "cpu_seconds"
    before = float(ledger.read_text()) if ledger.exists() else 0.0
    if before >= 60 * minutes:
        return before
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "tools" / "train_rec.py"), "-c", str(path)]
    with (folder / "out.txt").open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
    spent, stopped = 0.0, False
    try:
        while process.poll() is None:
            try:
                spent = cpu_seconds(process.pid)
            except OSError:  # it has just ended
                break
            if before + spent >= 60 * minutes:
                process.send_signal(signal.SIGTERM)
                process.wait()
            time.sleep(1)
    except KeyboardInterrupt:
        process.send_signal(signal.SIGTERM)
        stopped = True
    code = process.wait()
    if code in (0, 143):  # what was not saved is not paid for
        ledger.write_text(str(before + spent))
    if stopped or code not in (0, 143):
        raise SystemExit("stopped; the same command continues" if stopped else f"training failed, see {log.name}")
    return before + spent


def test_sets(options: argparse.Namespace) -> list[WordSet]:
    latin = all_words(options.real_words)
    words = [w for w in latin.words if script_of(w.text) in ("Latin", "digits") and len(w.text) <= 20]
    return [
        held_out_words(options.ic15),
        all_words(options.ic15),
        WordSet("real_words, Latin and digits, at most 20 characters", latin.about, words),
    ]


def run_variant(variant: str, seed: int, sets: list[WordSet], options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one variant; from its file where that is done."""
    folder = options.work / f"{variant.replace(' ', '_')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / f"result-{options.minutes:g}.json"
    if done.exists():
        return json.loads(done.read_text())
    seconds = train(write_config(variant, seed, options, folder), folder, options.minutes)
    recognizer = load(folder / "latest.pth", device="cpu")
    result: dict[str, Any] = {"variant": variant, "seed": seed, "cpu_minutes": round(seconds / 60, 2), "sets": {}}
    result["steps"] = torch.load(folder / "latest.pth", weights_only=True)["global_step"]
    for words in sets:
        rows, wrong = score(recognizer, words)
        result["sets"][words.name] = {
            "words": rows[0].words, "correct": rows[0].correct, "similarity": rows[0].similarity,
            "wrong": [w["name"] for w in wrong],
        }  # fmt: skip
    if not options.dry_run:
        done.write_text(json.dumps(result))
    print(variant, seed, {n: f"{s['correct']}/{s['words']}" for n, s in result["sets"].items()}, flush=True)
    return result


def sign_test(lost: int, won: int) -> float:
    """Two-sided probability of so uneven a split among words that one of two models misread."""
    n, k = lost + won, min(lost, won)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n) if n else 1.0


def rows_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per variant, seed and set, compared with the full renderer of the same seed on the same words."""
    full = {r["seed"]: r for r in results if r["variant"] == "full"}
    rows = []
    for result in results:
        for name, found in result["sets"].items():
            base = full[result["seed"]]["sets"][name]
            lost = len(set(found["wrong"]) - set(base["wrong"]))
            won = len(set(base["wrong"]) - set(found["wrong"]))
            rows.append(
                {k: result[k] for k in ("variant", "seed", "cpu_minutes", "steps")}
                | {"set": name, "words": found["words"], "correct": found["correct"]}
                | {"similarity": found["similarity"], "lost": lost, "won": won, "p": round(sign_test(lost, won), 4)}
            )
    return rows


def _about_start(options: argparse.Namespace) -> list[str]:
    if not options.start:
        return []
    steps = torch.load(options.start, map_location="cpu", weights_only=True)["global_step"]
    line = f"Every variant goes on from the same weights, of {steps} steps with the full renderer"
    return [line + ", so what a part taught before is still there, and rows show less than its whole worth.", ""]


def write_results(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    names = " ".join(f"'{v}'" for v in options.variants) if options.variants != list(VARIANTS) else ""
    command = (
        f"python benchmarks/renderer_ablation.py --ic15 DIR --real-words DIR --work DIR --minutes {options.minutes:g} "
        f"--seeds {' '.join(map(str, options.seeds))}"
        + (" --start FILE" if options.start else "")
        + (f" --variants {names}" if names else "")
    )
    about = {
        "date": time.strftime("%Y-%m-%d"), "openrec": __version__, "torch": str(torch.__version__),
        "python": platform.python_version(), "machine": f"{os.cpu_count()} cores, {cpu_name()}",
        "config": options.config, "command": command,
    }  # fmt: skip
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    lines = [
        f"Measured {about['date']}, torch {about['torch']}, {about['machine']}, one thread; {options.config}.", "",
        f"    {command}", "", *_about_start(options),
        "Lost and won: words that the full renderer's model of the same seed read and this one did not, and the other "
        "way round; p: how likely so uneven a split is by chance (sign test; of this many rows some fall below 0.05).",
        "", "| variant | seed | CPU minutes | steps | set | words | read | accuracy | 1-NED | lost | won | p |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    lines += [
        f"| {r['variant']} | {r['seed']} | {r['cpu_minutes']} | {r['steps']} | {r['set']} | {r['words']} | "
        f"{r['correct']} | "
        f"{100 * r['correct'] / r['words']:.1f} % | {r['similarity']:.3f} | {r['lost']} | {r['won']} | {r['p']:.3f} |"
        for r in sorted(rows, key=lambda r: (r["set"], r["variant"] != "full", -r["correct"]))
    ]
    options.output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ic15", type=Path, required=True)
    parser.add_argument("--real-words", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="checkpoints and results of variants")
    parser.add_argument("--start", type=Path, help="checkpoint of the full renderer that every variant goes on from")
    parser.add_argument("--minutes", type=float, default=20, help="CPU minutes per variant (default: 20)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--dry-run", action="store_true", help="two steps each, no result is written")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "renderer_ablation")
    options = parser.parse_args()
    options.work = options.work.resolve() / ("dry" if options.dry_run else "")
    options.variants = list(dict.fromkeys(["full", *options.variants]))
    torch.set_num_threads(1)
    sets, results = test_sets(options), []
    for seed in options.seeds:
        for variant in options.variants:
            results.append(run_variant(variant, seed, sets, options))
            if not options.dry_run and results[0]["variant"] == "full":
                write_results(rows_of(results), options)
    print(f"{len(rows_of(results))} rows; " + ("dry run" if options.dry_run else f"{options.output}.md"))


if __name__ == "__main__":
    main()
