"""Encoders: image -> feature map ``[B, C, H, W]`` (``out_rank`` 4) or sequence ``[B, N, C]`` (``out_rank`` 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from openrec import registry

__all__ = ["build_encoder"]


def build_encoder(config: Mapping[str, Any], **context: Any) -> nn.Module:
    """The encoder of ``Architecture.Encoder``; ``context`` (``in_channels``) fills what the config leaves open."""
    return registry.build("encoder", config, "Architecture.Encoder", **context)
