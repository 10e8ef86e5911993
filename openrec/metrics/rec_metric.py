"""Word accuracy and normalised edit distance, with OpenOCR's formulas and keys (Topdu/OpenOCR, Apache-2.0)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from openrec.metrics.text_pairs import Sums, distance, merge_windows, share, similarity, strip_symbols

logger = logging.getLogger("openrec")

Pairs = Sequence[tuple[str, float]]
# Accuracies of ``with_ratio`` and how they compare: as read, without spaces, after the filter.
_VARIANTS = ("real", "lower", "ignore_space", "ignore_space_lower", "ignore_space_symbol", "ignore_space_lower_symbol")


class RecMetric:
    """Scores ``(predictions, labels)``, two lists of ``(text, score)``.

    Args:
        main_indicator: the number that picks the best model.
        is_filter: compare only ``[0-9A-Za-z]``. Texts without any of these become equal: ``counts()["emptied"]``.
        is_lower: compare in lower case.
        ignore_space: compare without spaces.
        stream: a batch is one line cut into overlapping windows.
        with_ratio: also numbers per text length and per aspect ratio, the last element of the batch (evaluation).
        max_len, max_ratio: slots of those lists; the last slot takes all longer or wider ones.
    """

    def __init__(
        self,
        main_indicator: str = "acc",
        is_filter: bool = False,
        is_lower: bool = True,
        ignore_space: bool = True,
        stream: bool = False,
        with_ratio: bool = False,
        max_len: int = 25,
        max_ratio: int = 4,
    ):
        self.main_indicator = main_indicator
        self.is_filter, self.is_lower, self.ignore_space = is_filter, is_lower, ignore_space
        self.stream, self.with_ratio, self.max_len, self.max_ratio = stream, with_ratio, max_len, max_ratio
        lists = {f"{by}_{what}": n for by, n in (("len", max_len), ("ratio", max_ratio)) for what in ("n", "ok", "dis")}
        self.sums = Sums(("num", "correct", "distance", "emptied", *_VARIANTS), lists)

    def __call__(
        self, pred_label: tuple[Pairs, Pairs], batch: Sequence[Any] | None = None, training: bool = False
    ) -> dict[str, float]:
        """Accumulate a batch; its own ``acc`` and ``norm_edit_dis``."""
        predictions = [text for text, _ in pred_label[0]]
        targets = [text for text, _ in pred_label[1]]
        if self.stream:
            predictions, targets = [merge_windows(predictions)], targets[:1]
        ratios = [int(r) for r in batch[-1]] if self.with_ratio and not training and batch is not None else None
        correct, distances = 0, 0.0
        for i, (prediction, target) in enumerate(zip(predictions, targets)):
            equal, dist = self._pair(prediction, target, ratios[i] if ratios else None)
            correct, distances = correct + equal, distances + dist
        n = min(len(predictions), len(targets))
        for name, amount in (("num", n), ("correct", correct), ("distance", distances)):
            self.sums.add(name, amount)
        return {"acc": share(correct, n), "norm_edit_dis": similarity(distances, n)}

    def _pair(self, prediction: str, target: str, ratio: int | None) -> tuple[bool, float]:
        pair = (prediction, target)
        steps = [pair, _lower(pair)]
        if self.ignore_space:
            pair = (pair[0].replace(" ", ""), pair[1].replace(" ", ""))
        steps += [pair, _lower(pair)]
        if self.is_filter:
            differ = pair[0].lower() != pair[1].lower()
            pair = (strip_symbols(pair[0]), strip_symbols(pair[1]))
            self.sums.add("emptied", differ and not any(pair))
        steps.append(pair)
        if self.is_lower:
            pair = _lower(pair)
        steps.append(pair)
        equal, dist = pair[0] == pair[1], distance(*pair)
        if ratio is not None:
            for name, (one, other) in zip(_VARIANTS, steps):
                self.sums.add(name, one == other)
            length = max(0, min(self.max_len, len(pair[1])) - 1)
            for by, slot in (("len", length), ("ratio", max(0, min(self.max_ratio, ratio) - 1))):
                self.sums.add_at(f"{by}_n", slot)
                self.sums.add_at(f"{by}_ok", slot, equal)
                self.sums.add_at(f"{by}_dis", slot, dist)
        return equal, dist

    def get_metric(self, training: bool = False) -> dict[str, Any]:
        """Totals since the last call, and start anew."""
        s, n = self.sums, self.sums["num"]
        if s["emptied"]:
            logger.warning(
                "%d of %d pairs differ but hold no letter or digit of [0-9A-Za-z] on either side, so that "
                "Metric.is_filter makes them equal. Set it to False for other alphabets.",
                s["emptied"],
                n,
            )
        totals: dict[str, Any] = {"acc": share(s["correct"], n)}
        if self.with_ratio and not training:
            totals |= {f"acc_{name}": share(s[name], n) for name in _VARIANTS}
            for by in ("len", "ratio"):
                count = s[f"{by}_n"]
                totals[f"each_{by}_num"] = list(count)
                totals[f"each_{by}_acc"] = [share(a, b) for a, b in zip(s[f"{by}_ok"], count)]
                totals[f"each_{by}_norm_edit_dis"] = [similarity(a, b) for a, b in zip(s[f"{by}_dis"], count)]
        totals |= {"norm_edit_dis": similarity(s["distance"], n), "num_samples": n}
        self.reset()
        return totals

    def counts(self) -> dict[str, int]:
        """Exact numbers so far: ``correct``, ``total`` and ``emptied`` (pairs equal only because of the filter)."""
        return {"correct": self.sums["correct"], "total": self.sums["num"], "emptied": self.sums["emptied"]}

    def reset(self) -> None:
        self.sums.reset()

    def state(self) -> dict[str, Any]:
        """Sums so far, in plain types, for ``merge`` in another process."""
        return self.sums.state()

    def merge(self, state: dict[str, Any]) -> None:
        """Add the ``state()`` of another process."""
        self.sums.merge(state)


def _lower(pair: tuple[str, str]) -> tuple[str, str]:
    return pair[0].lower(), pair[1].lower()
