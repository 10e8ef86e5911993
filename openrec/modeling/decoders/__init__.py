"""Decoders: features -> class scores.

In training a decoder returns logits (or what its loss expects), in evaluation probabilities. ``needs`` tells
what it takes: '2d' a map ``[B, C, H, W]``, 'seq' tokens ``[B, N, C]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from openrec import registry

__all__ = ["build_decoder"]


def build_decoder(config: Mapping[str, Any], **context: Any) -> nn.Module:
    """The decoder of ``Architecture.Decoder``.

    ``in_channels`` and ``out_channels`` (number of classes; ``[guide, ctc]`` for ``GTCDecoder``) may stand in the
    config or come as ``context``.
    """
    config = dict(config)
    for key in ("in_channels", "out_channels"):
        if config.get(key) is not None:
            context[key] = config[key]  # also known to nested configs
    return registry.build("decoder", config, "Architecture.Decoder", **context)
