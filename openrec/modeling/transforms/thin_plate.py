"""Thin-plate splines between a row of points along the top, a row along the bottom, and where they came from.

The spline is Bookstein, "Principal Warps", PAMI 1989; reading text through it is Shi et al., "Robust Scene Text
Recognition with Automatic Rectification" (RARE), CVPR 2016, and "ASTER", PAMI 2019. Coordinates are (x, y) in
[-1, 1] from edge to edge of an image (``grid_sample`` with ``align_corners=False``).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.layers import exact, guard
from openrec.ops._checks import full_precision

INITS = ("identity", "aster", "rare")


def edge_points(count: int, margin: float = 0.0, name: str = "num_fiducial") -> np.ndarray:
    """``count / 2`` points along the top edge, then as many along the bottom; float64 ``[count, 2]``.

    Args:
        margin: distance from the image's border, as a share of its width and height.
        name: what the config calls ``count``.

    Raises:
        ConfigError: an odd number of points, fewer than four, or a margin that leaves nothing.
    """
    if count < 4 or count % 2:
        raise ConfigError(
            f"Transform.{name}: expected an even number of at least 4 (half of them per edge), got {count}."
        )
    if not 0 <= margin < 0.5:
        raise ConfigError(f"Transform.margin: expected a share of the image in [0, 0.5), got {margin}.")
    reach = 1 - 2 * margin
    x = np.linspace(-reach, reach, count // 2)
    y = np.full(count // 2, reach)
    return np.concatenate([np.stack([x, -y], 1), np.stack([x, y], 1)])


def first_points(count: int, init: str, margin: float) -> np.ndarray:
    """Where the source points start, float64 ``[count, 2]``.

    ``identity``: on the targets. ``aster``: at 0.01 of the border, whatever the targets' margin. ``rare``: the top row
    slopes from the middle up to the right corner, the bottom row from the left corner up to the middle.
    """
    if init not in INITS:
        raise ConfigError(f"Transform.init: expected one of {', '.join(INITS)}; got {init!r}.")
    points = edge_points(count, {"identity": margin, "aster": 0.01, "rare": 0.0}[init])
    if init == "rare":
        points[:, 1] = np.concatenate([np.linspace(0, -1, count // 2), np.linspace(1, 0, count // 2)])
    return points


def pixel_centres(height: int, width: int, stretch: float = 1.0) -> np.ndarray:
    """Centres of an image's pixels, row by row, float64 ``[height * width, 2]``; ``stretch`` scales them."""
    x, y = (np.arange(1, 2 * n, 2) / n - 1 for n in (width, height))
    return stretch * np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def basis(points: np.ndarray, control: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """``[U(P, C), 1, P]`` with U(r) = r^2 log r and U(0) = 0, float64 ``[len(P), len(C) + 3]``."""
    r = np.linalg.norm(points[:, None] - control[None], axis=-1)
    u = r**2 * np.log(r + epsilon if epsilon else np.where(r == 0, 1, r))
    return np.concatenate([u, np.ones((len(points), 1)), points], 1)


def spline_matrix(points: np.ndarray, control: np.ndarray, epsilon: float = 0.0) -> np.ndarray:
    """``M`` with ``spline(points) = M @ [source; tail]``, float64 ``[len(P), len(C) + 3]``; the tail is usually 0.

    Args:
        control: where the source points lie after the warp.
        epsilon: added to r inside the logarithm for ``points``.
    """
    system = np.zeros((len(control) + 3,) * 2)
    system[: len(control)] = basis(control, control)
    # The side conditions: the bending part has no constant and no linear component.
    system[-3], system[-2:] = [*np.ones(len(control)), 0, 0, 0], np.pad(control.T, ((0, 0), (0, 3)))
    return np.linalg.solve(system.T, basis(points, control, epsilon).T).T


@lru_cache(maxsize=64)
def _tables(count: int, margin: float, size: tuple[int, int], epsilon: float, stretch: float) -> tuple[np.ndarray, ...]:
    """Matrix, pixel centres, control points."""
    control, points = edge_points(count, margin), pixel_centres(*size, stretch)
    return spline_matrix(points, control, epsilon), points, control


class ThinPlate(nn.Module):
    """Source points -> sampling grid.

    Args:
        count: number of source points.
        margin: of the target points from the output's border.
        size: (height, width) of the output; None: given with every call.
        stretch: scales the output's pixel centres: above 1 the output shows more than the target points span.
    """

    matrix: Tensor
    points: Tensor
    control: Tensor

    def __init__(self, count: int, margin: float = 0.05, size: tuple[int, int] | None = None, stretch: float = 1.0):
        super().__init__()
        self.count, self.margin, self.size, self.stretch = count, float(margin), size, float(stretch)
        edge_points(count, margin)  # refuses what cannot be
        if size is not None:  # solved in float64, kept in float32
            for name, table in zip(("matrix", "points", "control"), self._of(size)):
                self.register_buffer(name, torch.from_numpy(table).float(), persistent=False)

    def _of(self, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
        return _tables(self.count, self.margin, size, 0.0, self.stretch)

    def forward(self, source: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Source points [B, count, 2] -> grid [B, H, W, 2], float32 (float64 for float64 points)."""
        size = self.size or size
        assert size is not None
        if self.size is not None and source.dtype == self.matrix.dtype == torch.float32:
            matrix, points, control = self.matrix, self.points, self.control
        else:
            matrix, points, control = (torch.from_numpy(t).to(source.device, source.dtype) for t in self._of(size))
        with full_precision(source.device):
            # The spline reproduces its control points' own place, so only what moved is multiplied: exact at rest.
            moved = source.to(points.dtype) - control
            grid = points + torch.matmul(matrix[:, : self.count], moved)
        return grid.view(-1, *size, 2)


class GridGenerator(nn.Module):
    """``ThinPlate`` as OpenOCR's ``TPS`` computes it: targets on the border, and a frozen layer for the tail.

    Source: Topdu/OpenOCR (Apache-2.0), names of weights. The layer ``fc`` is zero in every model that was trained.
    """

    EPSILON = 1e-6

    def __init__(self, count: int):
        super().__init__()
        self.count = count
        self.fc = nn.Linear(2 * count, 6)
        nn.init.zeros_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        self.fc.requires_grad_(False)
        guard(self.fc.weight, self.fc.bias)

    def forward(self, source: Tensor, size: tuple[int, int]) -> Tensor:
        """Source points [B, count, 2] -> grid [B, H, W, 2] in their dtype."""
        table = torch.from_numpy(_tables(self.count, 0.0, size, self.EPSILON, 1.0)[0])
        matrix = table.to(source.device, source.dtype)
        with full_precision(source.device):
            # The layer speaks of the conditions on x and y first, then of the one on the constant.
            tail = exact(self.fc, source.flatten(1)).view(-1, 3, 2)[:, [2, 0, 1]]
            grid = torch.matmul(matrix, torch.cat([source, tail], 1))
        return grid.view(-1, *size, 2)
