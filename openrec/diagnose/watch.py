"""When a number of a diagnosis is a reason to warn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Rule = Callable[["Watch", str, float], str]  # -> what is wrong, or ""

NEW = 100  # steps in which attention may be flat or alike even without a warm-up: new weights look everywhere
ZEROS = 3  # logs in a row with a gradient of exactly 0
OUT, OUT_GROWTH = 0.5, 0.2
ENTROPY, SIMILAR, DECAY, AREA, FAR, ALIKE = (0.05, 0.999), 0.95, (0.05, 0.9999), 0.2, 0.5, 0.3
STILL, FLAT, LOSSES = 0.02, 0.98, 6  # the loss is judged by so many logs after the warm-up


@dataclass
class Watch:
    """Keeps what warnings need to know of earlier logs.

    Args:
        warm_up: steps in which attention may still be flat or alike.

    Attributes:
        active: names of the numbers that were wrong in the last log.
    """

    warm_up: int = 0
    first: dict[str, float] = field(default_factory=dict)
    zeros: dict[str, int] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    active: set[str] = field(default_factory=set)
    step: int = 0

    def check(self, values: Mapping[str, float], step: int, loss: float | None = None) -> list[str]:
        """Warnings of this log that the one before did not have.

        Args:
            values: what ``scalars`` and ``gradients`` gave.
            step: the optimizer step. loss: its loss, if known.
        """
        self.step = step
        if loss is not None and self.warm:
            self.losses.append(loss)
        wrong: dict[str, str] = {}
        for name, value in values.items():
            kind, _, module = name.partition("/")
            self.first.setdefault(name, value)
            if not math.isfinite(value):
                wrong[name] = f"{kind} of {module} is not finite"
                continue
            why = RULES[kind](self, name, value) if kind in RULES else ""
            if why:
                wrong[name] = f"{kind} of {module} is {value:.4g}: {why}"
        fresh = [text for name, text in wrong.items() if name not in self.active]
        self.active = set(wrong)
        return fresh

    @property
    def warm(self) -> bool:
        return self.step > self.warm_up

    @property
    def flat(self) -> bool:
        """Whether the loss has hardly fallen since the warm-up: its later half of logs is as high as the earlier."""
        half = len(self.losses) // 2
        return len(self.losses) >= LOSSES and sum(self.losses[-half:]) > FLAT * sum(self.losses[:half])


def _frac_out(watch: Watch, name: str, value: float) -> str:
    if value > OUT:
        return "most points lie outside the map and read zeros; lower the learning rate of the offsets (lr_mult)"
    if value > watch.first[name] + OUT_GROWTH:
        return f"points leave the map, it began at {watch.first[name]:.3g}; lower the rate of the offsets (lr_mult)"
    return ""


def _entropy(watch: Watch, name: str, value: float) -> str:
    if watch.warm and value < ENTROPY[0]:
        return "attention has collapsed to single places"
    if watch.warm and value > ENTROPY[1]:
        return "attention is flat, nothing is looked at"
    return ""


def _similar(what: str) -> Rule:
    def rule(watch: Watch, name: str, value: float) -> str:
        return f"{what} look at the same places" if watch.warm and value > SIMILAR else ""

    return rule


def _far(watch: Watch, name: str, value: float) -> str:
    return "offsets are wider than half the map" if value > FAR else ""


def _gradient(watch: Watch, name: str, value: float) -> str:
    watch.zeros[name] = watch.zeros.get(name, 0) + 1 if value == 0 else 0
    if watch.zeros[name] >= ZEROS:
        return f"no gradient in {watch.zeros[name]} logs in a row, so it cannot learn"
    return ""


def _decay(watch: Watch, name: str, value: float) -> str:
    if value < DECAY[0]:
        return "the scan forgets at every step; its steps dt are too large"
    if value > DECAY[1]:
        return "the scan never forgets; its steps dt are too small"
    return ""


def _area(watch: Watch, name: str, value: float) -> str:
    return "the transform collapses the picture; lower its learning rate (lr_mult)" if value < AREA else ""


def _spread(watch: Watch, name: str, value: float) -> str:
    if watch.warm and value < ALIKE:
        return "features are nearly the same at every place of every picture; lower Optimizer.lr and start anew"
    return ""


def _still(watch: Watch, name: str, value: float) -> str:
    if watch.flat and abs(value - watch.first[name]) < STILL:
        return "reference points stay where they began and the loss is flat; set Decoder.ref_mode: soft_argmax"
    return ""


RULES: dict[str, Rule] = {
    "frac_out": _frac_out, "attn_entropy": _entropy, "attn_sim": _similar("different queries"),
    "attn_sim_next": _similar("this block and the one before"), "offset_share": _far, "grad": _gradient,
    "decay_mean": _decay, "grid_area": _area, "feature_spread": _spread, "ref_span": _still,
}  # fmt: skip
