"""Floating-point operations of one forward pass, the package's own operators included.

Counted by ``torch.utils.flop_counter`` (matrix products, convolutions, attention; a multiply-add is two), with formulas
for what it does not know: sampling, selective scans, attention on CPUs. Elementwise work is left out, as usual.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

Shape = tuple[int, ...]
BILINEAR = 8  # four corners, a multiply-add each


def selective_scan_flops(u: Shape, delta: Shape, a: Shape, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Per position, channel and state: exp(dt A) (2), dt B u (2), h = a h + b (2), y += C h (2), and D u (2) once."""
    return math.prod(u) * (8 * a[1] + 2)


def dcnv3_flops(value: Shape, offset: Shape, mask: Shape | None, kernel: Any, *rest: Any, **_: Any) -> int:
    """Every group reads its points for all of its channels; a mask weighs each of them."""
    group = rest[3]
    points = offset[3] // (2 * group)
    samples = math.prod(offset[:3]) * value[3] * points
    return samples * (BILINEAR + (2 if mask is not None else 0))


def deform_sample_flops(value: Shape, loc: Shape, weight: Shape | None = None, *_: Any, **__: Any) -> int:
    samples = math.prod(loc[:4]) * value[2]
    return samples * (BILINEAR + (2 if weight is not None else 0))


def grid_sample_flops(value: Shape, grid: Shape, *_: Any, **__: Any) -> int:
    return BILINEAR * math.prod(grid[:-1]) * value[1]


def attention_flops(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def linear_flops(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def formulas() -> dict[Any, Callable[..., int]]:
    """Operator -> formula of the shapes of its arguments; only operators that exist here."""
    aten = torch.ops.aten
    table: dict[Any, Callable[..., int]] = {aten.grid_sampler_2d: grid_sample_flops}
    if hasattr(aten, "_scaled_dot_product_flash_attention_for_cpu"):
        table[aten._scaled_dot_product_flash_attention_for_cpu] = attention_flops
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # what `layers.Linear` calls where oneDNN is faster
        table[torch.ops.mkldnn._linear_pointwise] = linear_flops
    for name, formula in (
        ("selective_scan_forward", selective_scan_flops), ("dcnv3_forward", dcnv3_flops),
        ("deform_sample_forward", deform_sample_flops),
    ):  # fmt: skip
        if hasattr(torch.ops.openrec, name):
            table[getattr(torch.ops.openrec, name)] = formula
    return table


def count_flops(model: nn.Module, image: Tensor) -> int:
    """Operations of ``model(image)`` in evaluation mode, [B, 3, H, W]; decoders that loop run as they do there."""
    training, learning = model.training, [p for p in model.parameters() if p.requires_grad]
    counter = FlopCounterMode(display=False, custom_mapping=formulas())
    model.eval()
    for p in learning:  # the counter follows what requires a gradient, and fails on a parameter that a module returns
        p.requires_grad_(False)
    try:
        with torch.no_grad(), counter:
            model(image)
    finally:
        model.train(training)
        for p in learning:
            p.requires_grad_(True)
    return int(counter.get_total_flops())
