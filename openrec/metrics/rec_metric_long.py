"""Scores for long texts, length by length (the LTB benchmark of Du et al., AAAI 2025; keys of OpenOCR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openrec.metrics.rec_metric import Pairs
from openrec.metrics.text_pairs import Sums, distance, merge_windows, share, similarity, strip_symbols

MAX_LENGTH = 200


class RecMetricLong:
    """Totals and lists indexed by the target's length, 0 to 200 (longer ones count in the last slot).

    Args:
        is_filter: compare ``[0-9A-Za-z]`` in lower case; ignore_space: compare without spaces;
        stream: a batch is one line cut into overlapping windows.

    ``acc_slice``: the prediction is a beginning of the target; ``f_l_acc``: first and last characters agree;
    ``len_acc``: the lengths agree.
    """

    def __init__(
        self, main_indicator: str = "acc", is_filter: bool = False, ignore_space: bool = True, stream: bool = False
    ):
        self.main_indicator = main_indicator
        self.is_filter, self.ignore_space, self.stream = is_filter, ignore_space, stream
        numbers = ("num", "correct", "distance", "slice", "ends", "length")
        self.sums = Sums(numbers, dict.fromkeys(("n", "ok", "d"), MAX_LENGTH + 1))

    def __call__(
        self, pred_label: tuple[Pairs, Pairs], batch: Sequence[Any] | None = None, training: bool = False
    ) -> dict[str, float]:
        """Accumulate a batch; its own ``acc`` and ``norm_edit_dis``."""
        predictions = [text for text, _ in pred_label[0]]
        targets = [text for text, _ in pred_label[1]]
        if self.stream:
            predictions, targets = [merge_windows(predictions)], targets[:1]
        before = (self.sums["num"], self.sums["correct"], self.sums["distance"])
        for prediction, target in zip(predictions, targets):
            self._pair(self._normal(prediction), self._normal(target))
        n, correct, dist = (self.sums[k] - b for k, b in zip(("num", "correct", "distance"), before))
        return {"acc": share(correct, n), "norm_edit_dis": similarity(dist, n)}

    def _normal(self, text: str) -> str:
        text = text.replace(" ", "") if self.ignore_space else text
        return strip_symbols(text).lower() if self.is_filter else text

    def _pair(self, prediction: str, target: str) -> None:
        equal, dist = prediction == target, distance(prediction, target)
        slot = min(len(target), MAX_LENGTH)
        for name, amount in (
            ("num", 1),
            ("correct", equal),
            ("distance", dist),
            ("slice", target.startswith(prediction)),
            ("ends", prediction[:1] == target[:1] and prediction[-1:] == target[-1:]),
            ("length", len(prediction) == len(target)),
        ):
            self.sums.add(name, amount)
        for name, amount in (("n", 1), ("ok", equal), ("d", dist)):
            self.sums.add_at(name, slot, amount)

    def get_metric(self, training: bool = False) -> dict[str, Any]:
        """Totals since the last call, and start anew."""
        s, n = self.sums, self.sums["num"]
        totals = {
            "acc": share(s["correct"], n),
            "norm_edit_dis": similarity(s["distance"], n),
            "acc_slice": share(s["slice"], n),
            "f_l_acc": share(s["ends"], n),
            "len_acc": share(s["length"], n),
            "each_len_num": list(s["n"]),
            "each_len_acc": [share(a, b) for a, b in zip(s["ok"], s["n"])],
            "each_len_norm_edit_dis": [similarity(a, b) for a, b in zip(s["d"], s["n"])],
            "all_num": n,
        }
        self.reset()
        return totals

    def counts(self) -> dict[str, int]:
        """Exact numbers so far: ``correct`` and ``total``."""
        return {"correct": self.sums["correct"], "total": self.sums["num"]}

    def reset(self) -> None:
        self.sums.reset()

    def state(self) -> dict[str, Any]:
        """Sums so far, in plain types, for ``merge`` in another process."""
        return self.sums.state()

    def merge(self, state: dict[str, Any]) -> None:
        """Add the ``state()`` of another process."""
        self.sums.merge(state)
