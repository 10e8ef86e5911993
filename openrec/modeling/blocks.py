"""Blocks of detection transformers, under the name that models outside this package import them by."""

from openrec.modeling.decoders.detr_blocks import (
    FFN,
    MSDeformAttn,
    MultiheadAttention,
    MultiScaleDeformableAttention,
    TransformerLayer,
)

__all__ = ["FFN", "MSDeformAttn", "MultiScaleDeformableAttention", "MultiheadAttention", "TransformerLayer"]
