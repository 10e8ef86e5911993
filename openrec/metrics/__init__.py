"""Metrics: ``metric((predictions, labels)) -> numbers of the batch``; ``get_metric()`` -> totals, and start anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openrec import registry

__all__ = ["build_metric"]


def build_metric(config: Mapping[str, Any], **context: Any) -> Any:
    """The metric of the config's ``Metric``; its ``main_indicator`` names the number that picks the best model."""
    return registry.build("metric", config, "Metric", **context)
