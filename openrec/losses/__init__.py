"""Losses: ``loss(predictions, batch) -> {"loss": scalar, ...}``, the batch with its image first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from openrec import registry

__all__ = ["build_loss"]


def build_loss(config: Mapping[str, Any], **context: Any) -> nn.Module:
    """The loss of the config's ``Loss``."""
    return registry.build("loss", config, "Loss", **context)
