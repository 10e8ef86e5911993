"""Which query answers for which character: the assignment of least cost, for many images and layers at once.

Kuhn's Hungarian method with shortest augmenting paths (Jonker and Volgenant, Computing 38, 1987): exact. One path is
searched for the k-th character of every problem at the same time, so that Python counts steps, not images.
"""

from __future__ import annotations

import numpy as np

from openrec.errors import ConfigError


def assign(cost: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Least-cost assignment of rows to columns.

    Args:
        cost: [P, T, Q], of P problems. count: [P], rows of each that are to be assigned.

    Returns:
        int64 [P, T]: the column of each row, -1 beyond ``count``.

    Raises:
        ConfigError: more rows than columns.
    """
    problems, rows, columns = cost.shape
    longest = int(count.max(initial=0))
    if longest > columns:
        raise ConfigError(
            f"DINOLoss: a label of {longest} characters, but {columns} queries to find them. "
            f"Set Decoder.num_queries to at least {longest}."
        )
    cost = np.nan_to_num(cost.astype(np.float64), nan=1e6, posinf=1e6, neginf=-1e6)
    # Index 0 stands for "none"; column 0 is where the row that looks for a place waits.
    u, v = np.zeros((problems, rows + 1)), np.zeros((problems, columns + 1))
    owner, way = np.zeros((problems, columns + 1), np.int64), np.zeros((problems, columns + 1), np.int64)
    for row in range(1, longest + 1):
        _place(cost, np.flatnonzero(count >= row), row, u, v, owner, way)
    found = np.full((problems, rows + 1), -1, np.int64)
    p, c = np.nonzero(owner[:, 1:])
    found[p, owner[p, c + 1]] = c
    return found[:, 1:]


def _place(
    cost: np.ndarray, todo: np.ndarray, row: int, u: np.ndarray, v: np.ndarray, owner: np.ndarray, way: np.ndarray
) -> None:
    """Find a place for ``row`` in the problems ``todo``; others may have to move."""
    owner[todo, 0] = row
    size = owner.shape[1]
    least, used = np.full((len(owner), size), np.inf), np.zeros((len(owner), size), bool)
    at, going, end = np.zeros(len(owner), np.int64), todo, np.zeros(len(owner), np.int64)
    while len(going):
        used[going, at[going]] = True
        r = owner[going, at[going]]
        slack = cost[going, r - 1] - u[going, r][:, None] - v[going, 1:]
        seen, best = used[going], least[going]
        better = ~seen[:, 1:] & (slack < best[:, 1:])
        best[:, 1:][better] = slack[better]
        way[going] = np.where(np.pad(better, ((0, 0), (1, 0))), at[going][:, None], way[going])
        open_ = np.where(seen[:, 1:], np.inf, best[:, 1:])
        nearest = open_.argmin(1) + 1
        delta = open_[np.arange(len(going)), nearest - 1]
        i, c = np.nonzero(seen)
        u[going[i], owner[going[i], c]] += delta[i]
        v[going] -= np.where(seen, delta[:, None], 0.0)
        least[going] = best - np.where(seen, 0.0, delta[:, None])
        at[going] = nearest
        free = owner[going, nearest] == 0
        end[going[free]] = nearest[free]
        going = going[~free]
    going = todo
    while len(going):  # back along the path, everybody moves one place
        here = end[going]
        before = way[going, here]
        owner[going, here] = owner[going, before]
        end[going] = before
        going = going[before != 0]
