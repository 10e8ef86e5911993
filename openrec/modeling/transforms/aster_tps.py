"""ASTER's rectification, number for number as OpenOCR computes it, so that its weights load and read the same.

Idea: Shi et al., "ASTER: An Attentional Scene Text Recognizer with Flexible Rectification", PAMI 2019; interface and
names of weights: Topdu/OpenOCR (Apache-2.0). For new models ``TPS`` has the same network with grid and sampling in one
convention of coordinates; here the grid runs from corner to corner and is sampled from edge to edge, as there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.modeling.record import record
from openrec.modeling.transforms.heads import CHANNELS, STNHead
from openrec.modeling.transforms.rectifier import Rectifier, checked_size
from openrec.modeling.transforms.thin_plate import basis, edge_points
from openrec.ops._checks import full_precision


def _unit_points(count: int, margins: Sequence[float]) -> np.ndarray:
    """Points along top and bottom in [0, 1]; ``margins`` (x, y) from the border."""
    edge = (edge_points(count, name="num_control_points") + 1) / 2
    return np.asarray(margins) + edge * (1 - 2 * np.asarray(margins))


class TPSSpatialTransformer(nn.Module):
    """Source points in [0, 1] -> rectified image.

    Args:
        output_image_size: (height, width) px of the result.
        num_control_points: even.
        margins: (x, y) of the target points from the border, shares of the image.
    """

    inverse_kernel: Tensor
    padding_matrix: Tensor
    target_coordinate_repr: Tensor

    def __init__(
        self, output_image_size: Sequence[int], num_control_points: int = 20, margins: Sequence[float] = (0.05, 0.05)
    ):
        super().__init__()
        self.output_image_size = checked_size("tps_outputsize", output_image_size)
        height, width = self.output_image_size
        control = _unit_points(num_control_points, margins)
        kernel = np.zeros((num_control_points + 3,) * 2)
        kernel[:num_control_points] = basis(control, control)
        kernel[num_control_points:, :num_control_points] = kernel[:num_control_points, num_control_points:].T
        corners = np.meshgrid(*(np.arange(n) / max(n - 1, 1) for n in (width, height)))
        tables = {
            "inverse_kernel": np.linalg.inv(kernel),
            "padding_matrix": np.zeros((3, 2)),
            "target_coordinate_repr": basis(np.stack(corners, -1).reshape(-1, 2), control),
            "target_control_points": control,
        }
        for name, table in tables.items():  # in OpenOCR's checkpoints, so in these
            self.register_buffer(name, torch.from_numpy(table).float())

    def grid(self, source_control_points: Tensor) -> Tensor:
        """Points [B, count, 2] in [0, 1] -> where every output pixel comes from, [B, H, W, 2] in [0, 1]."""
        with full_precision(source_control_points.device):
            dtype = torch.promote_types(self.inverse_kernel.dtype, torch.float32)
            source, tail = source_control_points.to(dtype), self.padding_matrix.to(dtype)
            source = torch.cat([source, tail.expand(source.shape[0], 3, 2)], 1)
            grid = torch.matmul(self.target_coordinate_repr.to(dtype), self.inverse_kernel.to(dtype) @ source)
        return grid.view(-1, *self.output_image_size, 2).clamp(0, 1)

    def forward(self, input: Tensor, source_control_points: Tensor) -> Tensor:
        """Images [B, C, H, W] and points [B, count, 2] in [0, 1] -> [B, C, *output_image_size]."""
        grid = self.grid(source_control_points)
        with full_precision(input.device):
            out = F.grid_sample(input.to(grid.dtype), 2 * grid - 1, align_corners=False)
        return out.to(input.dtype)


class Aster_TPS(Rectifier):
    """ASTER's spatial transformer.

    Args:
        tps_inputsize: [height, width] px of the copy that the points are read from; multiples of 32.
        tps_outputsize: [height, width] px of the result, the encoder's ``max_sz``.
        num_control_points: even.
        tps_margins: (x, y) of the target points from the output's border.
        channels, hidden: widths of the localisation network; OpenOCR's are the defaults.
    """

    size_key = "tps_outputsize"

    def __init__(
        self,
        in_channels: int = 3,
        tps_inputsize: Sequence[int] = (32, 64),
        tps_outputsize: Sequence[int] = (32, 100),
        num_control_points: int = 20,
        tps_margins: Sequence[float] = (0.05, 0.05),
        *,
        channels: Sequence[int] = CHANNELS,
        hidden: int = 512,
    ):
        super().__init__(in_channels, tps_outputsize, "zeros")
        self.tps_inputsize = checked_size("tps_inputsize", tps_inputsize)
        start = _unit_points(num_control_points, (0.01, 0.01))
        self.stn_head = STNHead(
            in_channels, self.tps_inputsize, start, channels, hidden,
            norm="batch", fc_std=0.001, size_key="tps_inputsize",
        )  # fmt: skip
        self.tps = TPSSpatialTransformer(tps_outputsize, num_control_points, tps_margins)

    def forward(self, img: Tensor) -> Tensor:
        """Images [B, C, H, W] of any size -> [B, C, *tps_outputsize]."""
        small = F.interpolate(img, self.tps_inputsize, mode="bilinear", align_corners=True)
        points = self.stn_head(small).view(img.shape[0], -1, 2)
        record(self, "fiducial", points)
        return self.sample(img, 2 * self.tps.grid(points) - 1)
