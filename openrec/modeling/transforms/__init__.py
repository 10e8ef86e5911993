"""Spatial transforms that rectify the image before the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from openrec import registry

__all__ = ["build_transform"]


def build_transform(config: Mapping[str, Any] | None, **context: Any) -> nn.Module | None:
    """The transform of ``Architecture.Transform``, or ``None`` where the config names none."""
    if not config:
        return None
    return registry.build("transform", config, "Architecture.Transform", **context)
