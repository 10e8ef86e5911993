"""What every transform shares: reading the image through a grid, and standing still for the first steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.record import record
from openrec.ops._checks import full_precision
from openrec.registry import parameters

PADDINGS = ("border", "zeros", "reflection")


def checked_size(name: str, size: Sequence[int]) -> tuple[int, int]:
    """``size`` as (height, width) px."""
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"Transform.{name}: expected [height, width] in pixels, got {list(size)}.")
    return int(size[0]), int(size[1])


class Rectifier(nn.Module):
    """Base of the transforms: image ``[B, C, H, W]`` -> image ``[B, C, *output_size]``.

    Args:
        in_channels: C, which is also ``out_channels``.
        output_size: (height, width) px of the result; None: that of the input.
        padding_mode: what lies outside the image: ``border`` repeats its last pixels, ``zeros`` is mid-grey.
        freeze_steps: training steps for which the warp stays as it starts.
    """

    steps: Tensor
    size_key = "output_size"  # the config's name of it

    @classmethod
    def given_size(cls, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
        """(height, width) px of what a transform with these ``arguments`` gives; None: that of its input."""
        size = arguments.get(cls.size_key, parameters(cls)[cls.size_key].default)
        return None if size is None else (size[0], size[1])

    def __init__(
        self,
        in_channels: int,
        output_size: Sequence[int] | None,
        padding_mode: str = "border",
        freeze_steps: int = 0,
    ):
        super().__init__()
        if padding_mode not in PADDINGS:
            raise ConfigError(f"Transform.padding_mode: expected one of {', '.join(PADDINGS)}; got {padding_mode!r}.")
        if freeze_steps < 0:
            raise ConfigError(f"Transform.freeze_steps: expected a number of at least 0, got {freeze_steps}.")
        self.out_channels = in_channels
        self.output_size = None if output_size is None else checked_size(self.size_key, output_size)
        self.padding_mode, self.freeze_steps = padding_mode, int(freeze_steps)
        if freeze_steps:
            self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def held(self, parameters: Tensor) -> Tensor:
        """The warp's parameters; no gradient goes back through them in the first ``freeze_steps`` steps.

        The gradient is multiplied by zero rather than cut off: distributed training wants one for every weight.
        """
        if not (self.freeze_steps and self.training):
            return parameters
        free = (self.steps >= self.freeze_steps).to(parameters.dtype)
        self.steps += 1
        still = parameters.detach()
        return still + free * (parameters - still)

    def sample(self, x: Tensor, grid: Tensor) -> Tensor:
        """``x`` read at ``grid`` [B, h, w, 2], (x, y) in [-1, 1] from edge to edge of the image."""
        record(self, "grid", (grid + 1) / 2)
        with full_precision(x.device):
            out = F.grid_sample(x.to(grid.dtype), grid, "bilinear", self.padding_mode, align_corners=False)
        return out.to(x.dtype)
