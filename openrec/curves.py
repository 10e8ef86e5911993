"""Training curves from ``log.jsonl``: one picture, one or several runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openrec.errors import ConfigError, DataError, writing
from openrec.figure import drawing

PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")

_COMMON = ("event", "step", "epoch", "time")
# title, event, the keys it draws in order of wish, logarithmic axis
_PANELS = (
    ("loss", "train", ("loss", "ctc_loss", "gtc_loss"), True),
    ("evaluation", "eval", ("acc", "norm_edit_dis", "gtc_acc"), False),
    ("learning rate", "train", ("lr",), False),
    ("gradient norm", "train", ("grad_norm",), True),
    ("training images per second", "train", ("ips",), False),
)


@dataclass
class Log:
    """The events of one run: kind -> rows in order."""

    name: str
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def series(self, event: str, key: str) -> tuple[list[int], list[float]]:
        """Steps and finite values of a key."""
        pairs = [(r["step"], r[key]) for r in self.rows.get(event, []) if isinstance(r.get(key), (int, float))]
        pairs = [(s, float(v)) for s, v in pairs if math.isfinite(v)]
        return [s for s, _ in pairs], [v for _, v in pairs]

    def keys(self, event: str) -> list[str]:
        """Names of the numbers in this kind of event."""
        found: dict[str, None] = {}
        for row in self.rows.get(event, []):
            found |= dict.fromkeys(k for k, v in row.items() if k not in _COMMON and isinstance(v, (int, float)))
        return list(found)


def read_log(path: str | Path) -> Log:
    """A run's log, from the file or from the run's directory. A last line that was cut off is left out.

    Raises:
        DataError: no such file, a line that is no JSON object, or no event in it.
    """
    file = Path(path).expanduser()
    file = file / "log.jsonl" if file.is_dir() else file
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f'"{file}" cannot be read ({error.strerror}). Expected log.jsonl of a training run.') from error
    log = Log(file.parent.name if file.name == "log.jsonl" else file.stem)
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            log.rows.setdefault(row["event"], []).append({"step": 0, **row})
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):
                raise DataError(f'"{file}", line {number}: expected a JSON object with "event".') from error
    if not log.rows:
        raise DataError(f'"{file}" holds no event yet; the first one comes after Global.print_batch_step steps.')
    return log


def smooth(values: Sequence[float], share: float) -> list[float]:
    """Exponential mean without the bias of its start; ``share`` of the old value, 0 leaves everything as it is."""
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = share * mean + (1 - share) * value, share * weight + (1 - share)
        out.append(mean / weight)
    return out


def plot_logs(paths: Sequence[str | Path], output: str | Path, smoothing: float = 0.8) -> Path:
    """Draw the curves of all runs into one picture (PNG, SVG or PDF by its ending).

    Raises:
        DataError: a log that cannot be read. ConfigError: matplotlib is missing; a bad argument.
    """
    if not 0 <= smoothing < 1:
        raise ConfigError(f"smoothing: expected 0 <= smoothing < 1, got {smoothing}.")
    if Path(output).suffix.lower() not in PICTURES:
        raise ConfigError(f'cannot write "{output}": expected a name that ends in {", ".join(PICTURES)}.')
    logs = [read_log(path) for path in paths]
    with drawing() as figure_type:
        figure = _figure(figure_type, logs, smoothing)
        with writing(output):
            Path(output).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(output, dpi=120)
    return Path(output)


def _figure(figure_type: Any, logs: Sequence[Log], smoothing: float) -> Any:
    panels = [(p, keys) for p in _PANELS if (keys := _present(logs, p[1], p[2]))]
    extra = [k for log in logs for k in log.keys("diagnose")]  # what Global.diagnose writes
    panels += [((k, "diagnose", (k,), False), (k,)) for k in dict.fromkeys(extra)][:7]
    columns = 2 if len(panels) > 1 else 1
    rows = math.ceil(len(panels) / columns)
    figure = figure_type(figsize=(6.4 * columns, 3.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (panel, keys) in zip(axes, panels):
        _draw(axis, panel, keys, logs, smoothing)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure


def _present(logs: Sequence[Log], event: str, wanted: Sequence[str]) -> tuple[str, ...]:
    return tuple(key for key in wanted if any(log.series(event, key)[0] for log in logs))


def _draw(axis: Any, panel: tuple[Any, ...], keys: Sequence[str], logs: Sequence[Log], smoothing: float) -> None:
    title, event, _, logarithmic = panel
    lowest = math.inf
    for number, log in enumerate(logs):
        for style, key in zip(("-", "--", ":"), keys):
            steps, values = log.series(event, key)
            if not steps:
                continue
            lowest = min(lowest, *values)
            label = " ".join(filter(None, (log.name if len(logs) > 1 else "", key if len(keys) > 1 else "")))
            color = f"C{number if len(logs) > 1 else keys.index(key)}"
            noisy = event == "train" and key != "lr" and smoothing > 0 and len(values) > 4
            if noisy:
                axis.plot(steps, values, style, color=color, alpha=0.25, linewidth=0.8)
                values = smooth(values, smoothing)
            few = "o" if len(values) < 30 and event == "eval" else None
            axis.plot(steps, values, style, color=color, marker=few, markersize=3, linewidth=1.4, label=label)
    if event == "eval":
        _mark_best(axis, logs, keys[0])
        axis.set_ylim(0, 1.02)
    elif logarithmic and lowest > 0:
        axis.set_yscale("log")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("optimizer step", fontsize=8)
    axis.tick_params(which="both", labelsize=8)
    axis.grid(alpha=0.3)
    if any(line.get_label() and not line.get_label().startswith("_") for line in axis.get_lines()):
        axis.legend(fontsize=7)


def _mark_best(axis: Any, logs: Sequence[Log], key: str) -> None:
    for log in logs:
        steps, values = log.series("eval", key)
        if values:
            best = max(range(len(values)), key=values.__getitem__)
            axis.annotate(
                f"{100 * values[best]:.1f} %", (steps[best], values[best]), fontsize=8, ha="right", va="bottom",
                xytext=(-2, 3), textcoords="offset points",
            )  # fmt: skip
