"""Train encoders of equal size on real and rendered words and score them on real words that were held out.

    python benchmarks/train_real_words.py --ic15 DIR --real-words DIR --work DIR \
        --configs configs/rec/svtrv2/svtrv2_mamba_tiny.yml configs/rec/svtrv2/svtrv2_attn_tiny.yml --epochs 8

``--ic15``: ICDAR 2015 word recognition, training split, as ``labels.tsv`` (file<TAB>text) beside the images. Every
tenth row is held out; images that ``--real-words`` holds too (named ``ic15_train/word_N.*``) are left out of training.
Both runs take one thread each, side by side, with the same data, seed and number of steps. The table and JSON under
``benchmarks/results/`` hold accuracy with counts, the commands, CPU time, versions and machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml

from openrec import __version__
from openrec.checkpoint import read_checkpoint
from openrec.config import load_config
from openrec.engine.evaluation import evaluate_config

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / "tools"


def read_rows(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "labels.tsv").read_text(encoding="utf-8").splitlines()
    return [(line.split("\t")[0], line.split("\t")[1]) for line in lines if "\t" in line]


def stem(name: str) -> str:
    return Path(name).stem


def make_lmdb(rows: list[tuple[str, str]], images: Path, target: Path) -> None:
    if (target / "data.mdb").exists():
        return
    listing = target.with_suffix(".tsv")
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(f"{name}\t{text}\n" for name, text in rows), encoding="utf-8")
    tool("create_lmdb_dataset.py", "--images", images, "--labels", listing, "--output", target)


def tool(name: str, *arguments: object) -> None:
    subprocess.run([sys.executable, TOOLS / name, *map(str, arguments)], check=True, cwd=ROOT)


def prepare(options: argparse.Namespace) -> dict[str, Path]:
    """LMDBs: real (nine tenths, repeated), rendered, held-out tenth, checked real crops."""
    ic15, checked = read_rows(options.ic15), read_rows(options.real_words)
    checked = [row for row in checked if row[0].startswith("ic15_train/")]
    known = {stem(name) for name, _ in checked}
    held_out = [row for number, row in enumerate(ic15, 1) if number % 10 == 0]
    train = [row for number, row in enumerate(ic15, 1) if number % 10 and stem(row[0]) not in known]
    data = {name: options.work / "data" / name for name in ("real", "rendered", "held_out", "real_words")}
    make_lmdb(train * options.repeat, options.ic15, data["real"])
    make_lmdb(held_out, options.ic15, data["held_out"])
    make_lmdb(checked, options.real_words, data["real_words"])
    if not (data["rendered"] / "data.mdb").exists():
        target = data["rendered"]
        tool("render_words.py", "--count", options.rendered, "--output", target, "--split", "train", "--workers", 2)
    return data


def write_config(base: Path, data: dict[str, Path], options: argparse.Namespace) -> Path:
    """The base config on ratio-bucketed LMDBs, as a file of its own, so that the command can be repeated."""
    ops = [{"DecodeImagePIL": {"img_mode": "RGB"}}, {"CTCLabelEncode": None}]
    keep = {"KeepKeys": {"keep_keys": ["image", "label", "length"]}}

    def section(training: bool, folders: list[Path]) -> dict:
        transforms = [ops[0], {"PARSeqAugPIL": None}, ops[1], keep] if training else [*ops, keep]
        return {
            "dataset": {
                "name": "RatioDataSetTVResize", "padding": False, "data_dir_list": list(map(str, folders)),
                "transforms": transforms,
            },
            "sampler": {
                "name": "RatioSampler", "scales": [[128, 32]], "first_bs": options.batch, "is_training": training,
            },
            "loader": {"max_ratio": 4, "num_workers": 0, "shuffle": training},
        }  # fmt: skip

    config = {key: value for key, value in load_config(base).items() if key[0].isupper()}
    config["Global"].update(
        output_dir=str(options.work / base.stem), epoch_num=options.epochs, max_text_length=25, seed=options.seed,
        eval_epoch_step=[0, 1], print_batch_step=100,
    )  # fmt: skip
    config["Metric"] = {"name": "RecMetric", "main_indicator": "acc", "is_filter": True}
    config["Train"] = section(True, [data["real"], data["rendered"]])
    config["Eval"] = section(False, [data["held_out"]])
    path = options.work / f"{base.stem}.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def train_all(configs: list[Path], work: Path) -> dict[str, float]:
    """Run every config at once, one thread each; CPU seconds by name, those of earlier calls included."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ledger = work / "cpu_seconds.json"
    before = json.loads(ledger.read_text()) if ledger.exists() else {}
    running = {}
    for path in configs:
        log = (work / f"{path.stem}.out").open("a")
        command = [sys.executable, str(TOOLS / "train_rec.py"), "-c", str(path)]
        running[path.stem] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    seconds = dict.fromkeys(running, 0.0)
    while any(p.poll() is None for p in running.values()):
        for name, process in running.items():
            if process.poll() is None:
                with contextlib.suppress(OSError, IndexError):  # it may end between the two looks
                    seconds[name] = max(seconds[name], cpu_seconds(process.pid))
        ledger.write_text(json.dumps({name: before.get(name, 0.0) + value for name, value in seconds.items()}))
        time.sleep(2)
    failed = [name for name, process in running.items() if process.returncode]
    if failed:
        raise SystemExit(f"training failed: {failed}; see {work}/*.out")
    return json.loads(ledger.read_text())


def count_parameters(weights: Path) -> int:
    """Weights of a checkpoint, running statistics left out."""
    state = read_checkpoint(weights)["state_dict"]
    return sum(v.numel() for k, v in state.items() if "running_" not in k and "num_batches" not in k)


def evaluate(config: Path, folder: Path, weights: Path) -> dict[str, float]:
    """Numbers of one checkpoint on one LMDB, by the project's own evaluator."""
    overrides = [f"Eval.dataset.data_dir_list=[{folder}]", f"Global.pretrained_model={weights}"]
    return evaluate_config(load_config(config, overrides))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ic15", type=Path, required=True)
    parser.add_argument("--real-words", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--configs", type=Path, nargs="+", required=True)
    parser.add_argument("--rendered", type=int, default=60000)
    parser.add_argument("--repeat", type=int, default=5, help="times each real word is seen in an epoch")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=48)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "train_real_words")
    options = parser.parse_args()
    options.work = options.work.resolve()
    data = prepare(options)
    configs = [write_config(path.resolve(), data, options) for path in options.configs]
    seconds = train_all(configs, options.work)
    rows = []
    for path in configs:
        weights = options.work / path.stem / "latest.pth"
        for name in ("held_out", "real_words"):
            about = {"config": path.stem, "set": name, "cpu_minutes": round(seconds[path.stem] / 60, 1)}
            rows.append(about | {"parameters": count_parameters(weights)} | evaluate(path, data[name], weights))
    write_results(rows, options)


def learning_curve(log: Path) -> list[dict[str, float]]:
    """Steps and held-out accuracy of every evaluation in a ``log.jsonl``."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return [{"step": r["step"], "acc": round(r["acc"], 4)} for r in rows if r["event"] == "eval"]


def write_results(rows: list[dict], options: argparse.Namespace) -> None:
    """JSON and a Markdown table; paths of this machine stay out of both."""
    configs = [path.stem for path in options.configs]
    command = (
        "python benchmarks/train_real_words.py --ic15 DIR --real-words DIR --work DIR --configs "
        + " ".join(f"configs/rec/svtrv2/{path.name}" for path in options.configs)
        + f" --rendered {options.rendered} --repeat {options.repeat} --epochs {options.epochs} --batch {options.batch}"
        + f" --seed {options.seed}"
    )
    about = {
        "date": time.strftime("%Y-%m-%d"), "openrec": __version__, "torch": torch.__version__,
        "python": platform.python_version(), "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "command": command,
    }  # fmt: skip
    curves = {name: learning_curve(options.work / name / "log.jsonl") for name in configs}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"about": about, "rows": rows, "held_out_accuracy_by_step": curves}
    options.output.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [
        f"Measured {about['date']}, torch {about['torch']}, {about['machine']}, one thread per run, side by side.", "",
        f"    {command}", "",
        "| config | parameters | CPU minutes | set | words | read correctly | accuracy | 1-NED |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {r['config']} | {r['parameters']:,} | {r['cpu_minutes']} | {r['set']} | {r['num_samples']:.0f} | "
        f"{r['correct']} | {100 * r['acc']:.1f} % | {r['norm_edit_dis']:.3f} |"
        for r in rows
    ]
    lines += ["", "Held-out accuracy after each epoch:", ""]
    lines += [f"* {n}: " + ", ".join(f"{100 * p['acc']:.1f}" for p in points) for n, points in curves.items()]
    options.output.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
