"""Results of a benchmark as OpenOCR's CSV files and as a Markdown table.

The rows of the CSV files are those of OpenOCR's ``eval_rec_all_*.py`` (https://github.com/Topdu/OpenOCR, Apache-2.0).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openrec.engine.benchmark import Benchmark, SetResult
from openrec.metrics.interval import wilson

_VARIANTS = (
    "acc", "norm_edit_dis", "acc_real", "acc_lower", "acc_ignore_space", "acc_ignore_space_lower",
    "acc_ignore_space_symbol", "acc_ignore_space_lower_symbol",
)  # fmt: skip
_NOT_CHINESE = ("acc_lower", "acc_ignore_space_lower")
_BY = ("len", "ratio")
_SERIES = ("num", "acc", "norm_edit_dis")
_LONG_PARTS = (("26_35", 26, 35), ("36_55", 36, 55), ("56", 56, 200))
SUFFIX = {
    "en": "_eval_all_length_ratio.csv",
    "ch": "_eval_all_ch_length_ratio.csv",
    "long": "_result1_1_test_all_long_final_ultra_bs1.csv",
    "long_simple": "_result1_1_test_all_long_simple_bi_bs1.csv",
}
Row = list[Any]


def csv_name(output_dir: str | Path, kind: str, rule: bool) -> Path:
    """Where OpenOCR writes it; the numbers on every sample stand in a file beside it."""
    directory = Path(output_dir)
    name = directory.name + SUFFIX[kind]
    return directory / (name if rule else name.replace(".csv", "_every_sample.csv"))


def write_csv(benchmark: Benchmark, path: Path, kind: str, rule: bool) -> None:
    """The file of OpenOCR's script, under its rule or on every sample."""
    groups: dict[str, list[SetResult]] = {}
    for result in benchmark.results:
        groups.setdefault(result.place.group, []).append(result)
    rows: list[Row] = []
    for results in groups.values():
        rows += _long_rows(results, rule) if kind.startswith("long") else _group_rows(results, kind, rule)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def _numbers(result: SetResult, rule: bool) -> dict[str, Any]:
    return result.rule if rule else result.every


def _group_rows(results: Sequence[SetResult], kind: str, rule: bool) -> list[Row]:
    rows: list[Row] = []
    for result in results:
        rows.append([str(result.place.path)])
        numbers = _numbers(result, rule)
        rows += [[f"each_{by}_{what}", *numbers[f"each_{by}_{what}"]] for by in _BY for what in _SERIES]
    counts = [result.samples(rule) for result in results]
    rows.append(["-", *(r.place.name for r in results), "arithmetic_avg", "weighted_avg"])
    rows.append(["", *counts])
    for name in _VARIANTS:
        if kind == "ch" and name in _NOT_CHINESE:
            continue
        scale = 1 if name == "norm_edit_dis" else 100
        values = [scale * _numbers(result, rule)[name] for result in results]
        rows.append([name, *values, _mean(values), weighted(values, counts)])
    return rows + [_total(results, rule, by, what) for by in _BY for what in _SERIES]


def _total(results: Sequence[SetResult], rule: bool, by: str, what: str) -> Row:
    """A series of all sets together: counts summed, the others weighted by them."""
    counts = [_numbers(r, rule)[f"each_{by}_num"] for r in results]
    if what == "num":
        return [f"each_{by}_num", *(sum(c) for c in zip(*counts))]
    series = [_numbers(r, rule)[f"each_{by}_{what}"] for r in results]
    return [f"each_{by}_{what}", *(weighted(v, c) for v, c in zip(zip(*series), zip(*counts)))]


def _long_rows(results: Sequence[SetResult], rule: bool) -> list[Row]:
    rows: list[Row] = []
    for result in results:
        numbers = _numbers(result, rule)
        rows.append([str(result.place.path)])
        rows += [[f"each_len_{what}", *numbers[f"each_len_{what}"][26:]] for what in _SERIES]
    counts = [result.samples(rule) for result in results]
    for name, scale in (("acc", 100), ("norm_edit_dis", 1)):
        values = [scale * _numbers(r, rule)[name] for r in results]
        rows.append([name, *values, weighted(values, counts), _mean(values)])
    total = {what: _total(results, rule, "len", what) for what in _SERIES}
    rows.append([total["num"][0], *total["num"][1:][26:]])
    for what in _SERIES[1:]:
        key, series = total[what][0], total[what][1:]
        rows.append([key, *series[26:]])
        for part, low, high in _LONG_PARTS:
            inside = total["num"][1:][low : high + 1]
            mean = weighted(series[low : high + 1], inside) if sum(inside) else float("nan")
            rows.append([key + part, mean, sum(inside)])
    return rows


def weighted(values: Sequence[float], counts: Sequence[float]) -> float:
    """Mean of the values weighted by the counts; 0 where all counts are 0."""
    whole = sum(counts)
    return sum(v * c for v, c in zip(values, counts)) / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---- Markdown --------------------------------------------------------------------------------------


def markdown(benchmark: Benchmark) -> str:
    """One table to paste, with 95 % intervals, and the missing sets below it.

    ``every sample`` counts everything that the set holds; ``OpenOCR's rule`` leaves out what its scripts leave out.
    """
    lines = [
        f"{benchmark.checkpoint} ({benchmark.parameters / 1e6:.2f} M parameters). Word accuracy in %; in brackets the "
        "95 % Wilson interval.",
        "",
        "| set | samples | every sample | scored by OpenOCR's rule | OpenOCR's rule | 1 - edit distance |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    groups: dict[str, list[SetResult]] = {}
    for result in benchmark.results:
        groups.setdefault(result.place.group, []).append(result)
    for group, results in groups.items():
        lines += [_line(r.place.name, [r]) for r in results]
        if len(results) > 1:
            lines.append(_average(group, results))
            lines.append(_line(f"**{group}, all samples**", results))
    lines += ["", *_paper(groups)]
    if benchmark.missing:
        lines += ["", "Not evaluated:", "", *(f"* {place.name}: {why}" for place, why in benchmark.missing)]
    return "\n".join(lines) + "\n"


def _line(name: str, results: Sequence[SetResult]) -> str:
    cells = [name]
    for rule in (False, True):
        correct, total = sum(r.correct(rule) for r in results), sum(r.samples(rule) for r in results)
        cells += [str(total), interval(correct, total)]
    counts = [r.samples() for r in results]
    cells.append(f"{weighted([r.every['norm_edit_dis'] for r in results], counts):.4f}")
    return "| " + " | ".join(cells) + " |"


def _average(group: str, results: Sequence[SetResult]) -> str:
    every, rule = (_mean([100 * _numbers(r, kind)["acc"] for r in results]) for kind in (False, True))
    edit = _mean([r.every["norm_edit_dis"] for r in results])
    return f"| **{group}, mean of the sets** | | {every:.2f} | | {rule:.2f} | {edit:.4f} |"


def interval(correct: int, total: int) -> str:
    """``97.30 [96.66, 97.82]``"""
    if not total:
        return "-"
    low, high = wilson(correct, total)
    return f"{100 * correct / total:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def _paper(groups: dict[str, list[SetResult]]) -> list[str]:
    """A row for each group as papers print it: the sets side by side, then their mean (OpenOCR's rule)."""
    lines: list[str] = []
    for group, results in groups.items():
        values = [100 * r.rule["acc"] for r in results]
        lines += [
            f"| {group} (OpenOCR's rule) | " + " | ".join(r.place.name for r in results) + " | avg |",
            "|---" * (len(results) + 2) + "|",
            "| acc | " + " | ".join(f"{v:.1f}" for v in values) + f" | {_mean(values):.2f} |",
            "",
        ]
    return lines[:-1]
