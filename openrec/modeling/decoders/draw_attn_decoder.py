"""DRAW attention: each character sees a patch of the map through a movable grid of Gaussians.

Gregor et al., "DRAW: A Recurrent Neural Network For Image Generation", ICML 2015, section 3.2. Position, stride and
width of the grid come from the state, all differentiable. For text each axis has a stride and a width of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openrec.errors import ConfigError
from openrec.modeling.decoders.rnn_attn import Look, RNNAttnDecoder, State
from openrec.modeling.layers import guard
from openrec.modeling.record import record, recording
from openrec.ops._checks import full_precision

LOG_VARIANCE = (-4.0, 6.0)  # pixels^2


class Memory(NamedTuple):
    """Of one batch."""

    cells: Tensor  # [B, H, W, C]
    size: tuple[int, int]  # (H, W)


class Grid(NamedTuple):
    """A grid of Gaussians per reading, ``[B, Q]`` each, in pixels counted from 1 at the first pixel's centre."""

    gx: Tensor
    gy: Tensor
    delta_x: Tensor  # distance of neighbouring Gaussians
    delta_y: Tensor
    log_var_x: Tensor
    log_var_y: Tensor
    log_gamma: Tensor  # intensity


def filter_bank(centre: Tensor, stride: Tensor, log_var: Tensor, count: int, size: int) -> Tensor:
    """Rows of Gaussian weights over ``size`` pixels, each row summing to 1: ``[B, Q]`` -> ``[B, Q, count, size]``."""
    steps = torch.arange(1, count + 1, device=centre.device, dtype=centre.dtype) - count / 2 - 0.5
    mu = centre.unsqueeze(-1) + steps * stride.unsqueeze(-1)  # [B, Q, count]
    pixel = torch.arange(1, size + 1, device=centre.device, dtype=centre.dtype)
    filters = (-(pixel - mu.unsqueeze(-1)).square() / (2 * log_var.exp()[..., None, None])).exp()
    return filters / (filters.sum(-1, keepdim=True) + 1e-8)


class DRAWRead(nn.Module):
    """State -> a patch of ``grid`` (rows, columns) Gaussians, projected to ``hidden``.

    ``map_size`` (height, width): the map that the first look is made to cover.
    """

    def __init__(self, feat_dim: int, hidden: int, grid: Sequence[int], map_size: Sequence[int]):
        super().__init__()
        if len(grid) != 2 or min(grid) < 1:
            raise ConfigError(f"DRAWAttnDecoder: grid must hold the numbers of rows and columns, got {grid}.")
        self.rows, self.columns = (int(n) for n in grid)
        self.out_dim = hidden
        self.draw_grid = nn.Linear(hidden, 7)
        self.draw_out = nn.Linear(self.rows * self.columns * feat_dim, hidden)
        nn.init.normal_(self.draw_grid.weight, std=0.01)
        nn.init.zeros_(self.draw_grid.bias)
        height, width = map_size
        with torch.no_grad():  # a Gaussian is half as wide as its distance to the next
            self.draw_grid.bias[4] = 2 * math.log(max(_span(width, self.columns), 1.0) / 2)
            self.draw_grid.bias[5] = 2 * math.log(max(_span(height, self.rows), 1.0) / 2)
        guard(self.draw_grid.weight, self.draw_grid.bias, decay=True)

    def memory(self, x: Tensor) -> Memory:
        return Memory(x.permute(0, 2, 3, 1).contiguous(), (x.shape[2], x.shape[3]))

    def grid(self, h: Tensor, size: tuple[int, int]) -> Grid:
        """Where the states ``[B, Q, hidden]`` look in a map of ``size`` (H, W); float32."""
        height, width = size
        dtype = torch.promote_types(h.dtype, torch.float32)
        weight, bias = self.draw_grid.weight.to(dtype), self.draw_grid.bias.to(dtype)
        gx, gy, dx, dy, vx, vy, gamma = F.linear(h.to(dtype), weight, bias).unbind(-1)
        return Grid(
            (width + 1) / 2 * (gx + 1),
            (height + 1) / 2 * (gy + 1),
            _span(width, self.columns) * dx.clamp(max=0).exp(),
            _span(height, self.rows) * dy.clamp(max=0).exp(),
            vx.clamp(*LOG_VARIANCE),
            vy.clamp(*LOG_VARIANCE),
            gamma,
        )

    def filters(self, grid: Grid, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """``F_Y [B, Q, rows, H]`` and ``F_X [B, Q, columns, W]``."""
        fy = filter_bank(grid.gy, grid.delta_y, grid.log_var_y, self.rows, size[0])
        return fy, filter_bank(grid.gx, grid.delta_x, grid.log_var_x, self.columns, size[1])

    def patch(self, memory: Memory, fy: Tensor, fx: Tensor) -> Tensor:
        """``F_Y f F_X'`` per channel: ``[B, Q, rows, columns, C]``."""
        cells = memory.cells
        b, q, rows = fy.shape[:3]
        lines = fy.to(cells.dtype).flatten(1, 2) @ cells.flatten(2)  # [B, Q * rows, W * C]
        lines = lines.view(b, q, rows, *cells.shape[2:])
        return fx.to(lines.dtype).unsqueeze(2) @ lines

    def forward(self, state: State, memory: Memory) -> Look:
        with full_precision(state.h.device):
            grid = self.grid(state.h, memory.size)
            fy, fx = self.filters(grid, memory.size)
            patch = self.patch(memory, fy, fx) * grid.log_gamma.exp()[..., None, None, None].to(memory.cells.dtype)
            weights = (fy.mean(2).unsqueeze(-1) * fx.mean(2).unsqueeze(-2)).flatten(2)  # what the whole grid covers
        if recording(self):
            record(self, "box", self.box(grid, memory.size))
            record(self, "sigma", self.sigma(grid, memory.size))
        return Look(self.draw_out(patch.flatten(2)), weights)

    def box(self, grid: Grid, size: tuple[int, int]) -> Tensor:
        """The outermost Gaussians' centres as a rectangle, cxcywh in [0, 1]: ``[B, Q, 4]``."""
        height, width = size
        return torch.stack(
            (
                (grid.gx - 0.5) / width,
                (grid.gy - 0.5) / height,
                grid.delta_x * (self.columns - 1) / width,
                grid.delta_y * (self.rows - 1) / height,
            ),
            -1,
        )

    def sigma(self, grid: Grid, size: tuple[int, int]) -> Tensor:
        """Standard deviations of the Gaussians in x and y, as shares of the map: ``[B, Q, 2]``."""
        height, width = size
        return torch.stack(((grid.log_var_x / 2).exp() / width, (grid.log_var_y / 2).exp() / height), -1)


def _span(size: int, count: int) -> float:
    """Distance of ``count`` points that reach from the first of ``size`` pixels to the last."""
    return (size - 1) / max(count - 1, 1)


class DRAWAttnDecoder(RNNAttnDecoder):
    """Arguments: see ``RNNAttnDecoder``; ``grid``: rows and columns of Gaussians; ``attn_dim``: not used, a grid has no
    scores, but so the three recurrent decoders take the same keys."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int = 256,
        attn_dim: int = 256,
        embed_dim: int = 256,
        cell: str = "lstm",
        max_len: int = 25,
        init_state: str = "mean",
        deep_output: bool = True,
        pos2d: bool = True,
        dropout: float = 0.1,
        map_size: Sequence[int] = (8, 32),
        grid: Sequence[int] = (4, 4),
    ):
        super().__init__(
            DRAWRead(in_channels, hidden, grid, map_size), in_channels, out_channels, hidden=hidden,
            embed_dim=embed_dim, cell=cell, max_len=max_len, init_state=init_state, deep_output=deep_output,
            pos2d=pos2d, dropout=dropout, map_size=map_size,
        )  # fmt: skip
