"""Spatial transformer: the network straightens the image before it reads it.

Idea: Jaderberg et al., "Spatial Transformer Networks", NeurIPS 2015. The localisation network with its damped hidden
layer is ASTER's (Shi et al., PAMI 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openrec.errors import ConfigError
from openrec.modeling.record import record
from openrec.modeling.transforms.heads import CHANNELS, STNHead
from openrec.modeling.transforms.rectifier import Rectifier, checked_size
from openrec.modeling.transforms.thin_plate import ThinPlate, first_points, pixel_centres
from openrec.ops._checks import full_precision

MODES = ("affine", "similarity", "tps")
TPS_MARGIN = 0.05


def affine_grid(theta: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Where every output pixel comes from: ``theta`` [B, 2, 3] applied to pixel centres [H*W, 2] -> [B, H, W, 2].

    The map goes from output to input. For ``points = pixel_centres(*size)`` this is
    ``F.affine_grid(..., align_corners=False)``, in operations that every exporter knows.
    """
    with full_precision(theta.device):
        grid = torch.matmul(points, theta[:, :, :2].transpose(1, 2)) + theta[:, None, :, 2]
    return grid.view(-1, *size, 2)


def similarity(parameters: Tensor) -> Tensor:
    """(scale, angle in radians, shift x, shift y) [B, 4] -> affine matrices [B, 2, 3]."""
    scale, angle, x, y = parameters.unbind(1)
    c, s = scale * torch.cos(angle), scale * torch.sin(angle)
    return torch.stack([c, -s, x, s, c, y], 1).view(-1, 2, 3)


class STN(Rectifier):
    """Spatial transformer.

    Args:
        mode: ``affine`` (six numbers), ``similarity`` (scale, angle, shift) or ``tps`` (thin-plate spline).
        loc_size: [height, width] px of the copy that the warp is read from; multiples of 32.
        output_size: [height, width] px of the result; the encoder's ``max_sz``.
        padding_mode: ``border``, ``zeros`` or ``reflection``.
        num_fiducial: points of ``tps``.
        init: of ``tps``: ``identity``, ``aster`` or ``rare`` (see ``TPS``); the others start from identity.
        freeze_steps: training steps for which the warp stays as it starts.
        out_margin: share of the output, on every side, that shows what lies around the warped region.
        channels, hidden: widths of the localisation network.

    Raises:
        ConfigError: values outside these.
    """

    points: Tensor

    def __init__(
        self,
        in_channels: int = 3,
        mode: str = "affine",
        loc_size: Sequence[int] = (32, 64),
        output_size: Sequence[int] = (32, 128),
        padding_mode: str = "border",
        num_fiducial: int = 20,
        init: str = "identity",
        freeze_steps: int = 0,
        out_margin: float = 0.0,
        *,
        channels: Sequence[int] = CHANNELS,
        hidden: int = 512,
    ):
        super().__init__(in_channels, output_size, padding_mode, freeze_steps)
        if mode not in MODES:
            raise ConfigError(f"Transform.mode: expected one of {', '.join(MODES)}; got {mode!r}.")
        if mode != "tps" and init != "identity":
            raise ConfigError(f"Transform.init: {init!r} is a start of a spline; mode {mode} takes identity.")
        if not 0 <= out_margin < 0.5:
            raise ConfigError(f"Transform.out_margin: expected a share in [0, 0.5), got {out_margin}.")
        self.mode, self.loc_size = mode, checked_size("loc_size", loc_size)
        size, stretch = checked_size("output_size", output_size), 1 / (1 - 2 * out_margin)
        if mode == "tps":
            margin = 0.0 if init == "rare" else TPS_MARGIN  # RARE's targets lie on the border
            start = first_points(num_fiducial, init, margin)
            self.spline = ThinPlate(num_fiducial, margin, size, stretch)
        else:
            start = np.array([1.0, 0, 0, 0, 1, 0] if mode == "affine" else [1.0, 0, 0, 0])
            self.table = pixel_centres(*size, stretch)
            self.register_buffer("points", torch.from_numpy(self.table).float(), persistent=False)
        self.stn_head = STNHead(in_channels, self.loc_size, start, channels, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] of any size -> [B, C, *output_size]."""
        assert self.output_size is not None
        small = F.interpolate(x, self.loc_size, mode="bilinear", align_corners=False)
        parameters = self.held(self.stn_head(small))
        if self.mode == "tps":
            source = parameters.view(x.shape[0], -1, 2)
            record(self, "fiducial", (source + 1) / 2)
            return self.sample(x, self.spline(source))
        theta = parameters.view(-1, 2, 3) if self.mode == "affine" else similarity(parameters)
        record(self, "theta", theta)
        points = self.points
        if not points.dtype == theta.dtype == torch.float32:  # a model in another precision has rounded them
            points = torch.from_numpy(self.table).to(theta)
        return self.sample(x, affine_grid(theta, points, self.output_size))
