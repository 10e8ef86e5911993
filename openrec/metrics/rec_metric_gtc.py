"""Scores of both branches of a ``GTCDecoder``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openrec.metrics.rec_metric import Pairs, RecMetric


class RecGTCMetric:
    """``RecMetric`` of the CTC branch, plus ``gtc_acc`` and ``gtc_norm_edit_dis`` of the guide.

    Takes ``[guide's (predictions, labels), CTC's (predictions, labels)]``; arguments as for ``RecMetric``, with
    ``main_indicator`` one of ``acc``, ``norm_edit_dis``, ``gtc_acc``, ``gtc_norm_edit_dis``.
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
        rest = (is_filter, is_lower, ignore_space, stream, with_ratio, max_len, max_ratio)
        self.gtc_metric, self.ctc_metric = RecMetric("acc", *rest), RecMetric("acc", *rest)

    def __call__(
        self, pred_label: Sequence[tuple[Pairs, Pairs]], batch: Sequence[Any] | None = None, training: bool = False
    ) -> dict[str, float]:
        gtc, ctc = pred_label
        return _join(self.ctc_metric(ctc, batch, training), self.gtc_metric(gtc, batch, training))

    def get_metric(self, training: bool = False) -> dict[str, Any]:
        """Totals since the last call, and start anew."""
        return _join(self.ctc_metric.get_metric(training), self.gtc_metric.get_metric(training))

    def counts(self) -> dict[str, int]:
        """``RecMetric.counts()`` of the CTC branch, and ``gtc_correct``."""
        return {**self.ctc_metric.counts(), "gtc_correct": self.gtc_metric.counts()["correct"]}

    def reset(self) -> None:
        self.gtc_metric.reset()
        self.ctc_metric.reset()

    def state(self) -> dict[str, Any]:
        """Sums so far, in plain types, for ``merge`` in another process."""
        return {"gtc": self.gtc_metric.state(), "ctc": self.ctc_metric.state()}

    def merge(self, state: dict[str, Any]) -> None:
        """Add the ``state()`` of another process."""
        self.gtc_metric.merge(state["gtc"])
        self.ctc_metric.merge(state["ctc"])


def _join(ctc: dict[str, Any], gtc: dict[str, Any]) -> dict[str, Any]:
    return {**ctc, "gtc_acc": gtc["acc"], "gtc_norm_edit_dis": gtc["norm_edit_dis"]}
