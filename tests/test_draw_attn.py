"""DRAW's filters: slicing in the limit, sums, the grid's movement, its start and gradient."""

import math

import pytest
import torch

from openrec.errors import ConfigError
from openrec.modeling.decoders.draw_attn_decoder import DRAWRead, filter_bank
from openrec.modeling.decoders.rnn_attn import State

SHARP = 2 * math.log(1e-3)


def number(value):
    return torch.tensor([[float(value)]], dtype=torch.float64)


def read_of(grid=(4, 4), map_size=(8, 32), channels=3):
    torch.manual_seed(0)
    return DRAWRead(channels, 16, grid, map_size).double()


@pytest.mark.parametrize(
    "count, stride, centre, want", [(4, 2, 6, [2, 4, 6, 8]), (3, 1, 2, [0, 1, 2]), (5, 3, 7, [0, 3, 6, 9, 12])]
)
def test_sharp_filters_at_integer_centres_are_strided_slicing(count, stride, centre, want):
    filters = filter_bank(number(centre), number(stride), number(SHARP), count, 13)
    torch.testing.assert_close(filters[0, 0], torch.eye(13, dtype=torch.float64)[want][:, :13], atol=1e-7, rtol=0)


def test_sharp_patch_equals_a_strided_slice():
    read, x = read_of((2, 3)), torch.randn(1, 3, 8, 32, dtype=torch.float64)
    fy = filter_bank(number(4), number(2), number(SHARP), 2, 8)  # pixels 3 and 5, from 1
    fx = filter_bank(number(11), number(4), number(SHARP), 3, 32)  # 7, 11, 15
    patch = read.patch(read.memory(x), fy, fx)
    torch.testing.assert_close(patch[0, 0], x[0, :, 2:6:2, 6:16:4].permute(1, 2, 0), atol=1e-6, rtol=0)


@pytest.mark.parametrize("centre", [2.0, 4.3, 12.0])
@pytest.mark.parametrize("log_var", [-4.0, 0.0, 6.0])
def test_rows_sum_to_one(centre, log_var):
    filters = filter_bank(number(centre), number(0.5), number(log_var), 4, 13)
    torch.testing.assert_close(filters.sum(-1), torch.ones(1, 1, 4, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("axis, size", [(0, 32), (1, 8)])
def test_the_glimpse_moves_by_one_pixel(axis, size):
    read, h = read_of(), torch.zeros(1, 1, 16, dtype=torch.float64)
    before = read.grid(h, (8, 32))
    with torch.no_grad():
        read.draw_grid.bias[axis] += 2 / (size + 1)
    after = read.grid(h, (8, 32))
    assert float((after[axis] - before[axis]).detach()) == pytest.approx(1.0)
    assert float(after[1 - axis]) == float(before[1 - axis])


def test_the_first_glimpse_covers_the_map():
    read, h = read_of(), torch.zeros(1, 1, 16, dtype=torch.float64)
    grid = read.grid(h, (8, 32))
    assert float(grid.gx) == 16.5 and float(grid.gy) == 4.5
    assert float(grid.delta_x) == pytest.approx(31 / 3) and float(grid.delta_y) == pytest.approx(7 / 3)
    assert float(grid.log_var_x.exp().sqrt()) == pytest.approx(31 / 6, rel=1e-5)
    assert float(grid.log_var_y.exp().sqrt()) == pytest.approx(7 / 6, rel=1e-5)
    box = read.box(grid, (8, 32))[0, 0].tolist()
    assert box == pytest.approx([0.5, 0.5, 31 / 32, 7 / 8])
    assert float(read.draw_grid.weight.std()) < 0.02


def test_limits_hold():
    read = read_of()
    with torch.no_grad():
        read.draw_grid.bias.copy_(torch.tensor([0.0, 0.0, 5.0, -1.0, 50.0, -50.0, 0.0]))
    grid = read.grid(torch.zeros(1, 1, 16, dtype=torch.float64), (8, 32))
    assert float(grid.delta_x) == pytest.approx(31 / 3)  # never wider than the map
    assert float(grid.log_var_x) == 6.0 and float(grid.log_var_y) == -4.0


def test_equals_the_formula_per_channel_and_finite_differences():
    read, x = read_of((2, 3), (3, 5)), torch.randn(2, 3, 3, 5, dtype=torch.float64).requires_grad_()
    h = torch.randn(2, 2, 16, dtype=torch.float64).requires_grad_()
    memory = read.memory(x)
    grid = read.grid(h, memory.size)
    fy, fx = read.filters(grid, memory.size)
    patch = torch.stack([fy @ x[:, None, c] @ fx.transpose(-1, -2) for c in range(3)], -1)
    patch = patch * grid.log_gamma.exp()[..., None, None, None]
    torch.testing.assert_close(read(State(h, None), memory).z, read.draw_out(patch.flatten(2)))
    assert torch.autograd.gradcheck(lambda x, h: read(State(h, None), read.memory(x)).z, (x, h))


@pytest.mark.parametrize("map_size", [(1, 7), (4, 1)])
@pytest.mark.parametrize("grid", [(1, 1), (4, 4)])
def test_maps_and_grids_of_one_row_or_column(map_size, grid):
    read = read_of(grid, map_size)
    look = read(
        State(torch.randn(2, 1, 16, dtype=torch.float64), None), read.memory(torch.randn(2, 3, *map_size).double())
    )
    assert torch.isfinite(look.z).all()


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="grid"):
        read_of((0, 4))
