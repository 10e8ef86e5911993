"""From what modules told in a training step to numbers for the log."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 8  # of a batch that are looked at: attention maps of a whole batch are too large to keep
_NO_BATCH = ("ref", "theta", "fiducial")  # small, or without a batch axis
Told = Mapping[tuple[str, str], Sequence[Tensor]]

# Parameters that decide where a module looks; a gradient that is exactly 0 for long means that they cannot learn.
WATCHED = re.compile(r"sampling_offsets|da_scan\.offset|conv_offset|(stn|transform)\b.*fc2")


def keep_some(key: str, tensor: Tensor) -> Tensor:
    """For ``Recorder(reduce=...)``: the first samples, in float32, without holding on to the rest."""
    part = tensor if key in _NO_BATCH or tensor.ndim < 2 else tensor[:SAMPLES]
    return part.float().clone()


def scalars(told: Told) -> dict[str, float]:
    """``{"frac_out/encoder...": 0.1, ...}``: per module, in the order in which modules told.

    Modules that tell a key in several pieces (steps of a decoder) have the mean over the pieces; ``loc_min`` and
    ``loc_max`` are over all.
    """
    found: dict[str, float] = {}
    for (module, key), tensors in told.items():
        reduce = _REDUCE.get(key)
        if reduce is None or not tensors:
            continue
        parts = [reduce(t.float()) for t in tensors if t.numel()]
        for name in dict.fromkeys(n for part in parts for n in part):
            values = [part[name] for part in parts if name in part]
            join = {"loc_min": min, "loc_max": max}.get(name, _mean)
            found[f"{name}/{module}"] = join(values)
    found |= _shares(told)
    found |= _neighbours(told)
    return found


def gradients(model: nn.Module) -> dict[str, float]:
    """``{"grad/<parameter>": norm}`` of the watch list; 0 where no gradient arrived."""
    return {
        f"grad/{name}": float(p.grad.norm()) if p.grad is not None else 0.0
        for name, p in model.named_parameters()
        if p.requires_grad and WATCHED.search(name)
    }


def summary(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over modules of each number, ``{"frac_out": ...}``; gradients are left out."""
    table: dict[str, list[float]] = {}
    for name, value in values.items():
        kind = name.split("/", 1)[0]
        if kind != "grad":
            table.setdefault(kind, []).append(value)
    return {kind: _mean(found) for kind, found in table.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---- one tensor ------------------------------------------------------------------------------------


def _loc(loc: Tensor) -> dict[str, float]:
    outside = ((loc < 0) | (loc > 1)).any(-1)
    return {"loc_min": float(loc.min()), "loc_max": float(loc.max()), "frac_out": float(outside.float().mean())}


def _offset(offset: Tensor) -> dict[str, float]:
    return {"offset_rms_px": float(offset.square().mean().sqrt())}


def weights_of(attn: Tensor) -> Tensor:
    """``[.., K]``: a whole map's two axes become one; told apart by which of them sum to one."""
    sums = (attn.sum(-1) - 1).abs().amax()
    if attn.ndim > 3 and sums > 1e-2 and (attn.sum((-2, -1)) - 1).abs().amax() < sums:
        return attn.flatten(-2)
    return attn


def _attn(attn: Tensor) -> dict[str, float]:
    weights = weights_of(attn)
    found = {"attn_std": float(weights.std(-1, correction=0).mean()), "attn_max": float(weights.amax(-1).mean())}
    if weights.shape[-1] > 1:
        entropy = -(weights * weights.clamp_min(1e-12).log()).sum(-1) / math.log(weights.shape[-1])
        found = {"attn_entropy": float(entropy.mean()), **found}
    return found


def _attn_of_queries(attn: Tensor) -> dict[str, float]:
    """Also ``attn_sim``, of different queries of one map."""
    return {**_attn(attn), **_similarity("attn_sim", weights_of(attn))}


def _similarity(name: str, weights: Tensor) -> dict[str, float]:
    """The mean cosine between different rows of a map ``[.., T, K]``."""
    n = weights.shape[-2] if weights.ndim > 2 else 1
    if n == 1 or weights.shape[-1] == 1:
        return {}
    unit = weights / weights.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    pairs = unit.sum(-2).square().sum(-1) - unit.square().sum((-2, -1))  # all pairs without forming them
    return {name: float((pairs / (n * (n - 1))).mean())}


def _grid(grid: Tensor) -> dict[str, float]:
    """Share of source points outside, of cells that are folded over, and the median area of a cell (1: unchanged)."""
    h, w = grid.shape[1:3]
    dx, dy = grid[:, :-1, 1:] - grid[:, :-1, :-1], grid[:, 1:, :-1] - grid[:, :-1, :-1]
    area = (dx[..., 0] * dy[..., 1] - dx[..., 1] * dy[..., 0]) * (h * w)
    outside = ((grid < 0) | (grid > 1)).any(-1)
    return {
        "grid_out": float(outside.float().mean()),
        "grid_fold": float((area < 0).float().mean()),
        "grid_area": float(area.abs().median()),
    }


def _theta(theta: Tensor) -> dict[str, float]:
    identity = torch.eye(2, 3, device=theta.device)
    return {"theta_move": float((theta.reshape(-1, 2, 3) - identity).norm(dim=(-2, -1)).mean())}


def _fiducial(points: Tensor) -> dict[str, float]:
    return {"fiducial_spread": float(points.std(-2, correction=0).mean())}


def _feature(feature: Tensor) -> dict[str, float]:
    """Root mean square of the features, and the share of it that differs between places and pictures (0: none)."""
    rows = feature.flatten(2).transpose(1, 2) if feature.ndim == 4 else feature
    rows = rows.reshape(-1, rows.shape[-1])
    rms = rows.square().mean().sqrt()
    spread = (rows - rows.mean(0)).square().mean().sqrt() / rms.clamp_min(1e-12)
    return {"feature_rms": float(rms), "feature_spread": float(spread)}


def _ref_steps(ref: Tensor) -> dict[str, float]:
    """How far apart, in widths of the map, the steps of a text look: from ``[B, T, 2]``, mean over the batch.

    Nothing of one step, as reading takes one after the other.
    """
    if ref.shape[-2] < 2:
        return {}
    x = ref[..., 0].mean(0)
    return {"ref_span": float(x.max() - x.min())}


_REDUCE: dict[str, Callable[[Tensor], dict[str, float]]] = {
    "loc": _loc, "offset": _offset, "attn": _attn_of_queries, "rows": _attn, "grid": _grid, "theta": _theta,
    "fiducial": _fiducial, "feature": _feature, "ref_steps": _ref_steps,
    "dt": lambda t: {"dt_mean": float(t.mean())},
    "decay": lambda t: {"decay_mean": float(t.mean())},
    "mixed": lambda t: _similarity("mixed_sim", t),
    "state": lambda t: {"state_rms": float(t.square().mean().sqrt())},
}  # fmt: skip


# ---- several tensors -------------------------------------------------------------------------------


def _shares(told: Told) -> dict[str, float]:
    """``offset_share``: root mean square of the way from reference to point, in widths of the map."""
    found = {}
    for (module, key), tensors in told.items():
        references = told.get((module, "ref"), ())
        if key != "loc" or len(references) != len(tensors):
            continue
        moved: list[Any] = []
        for loc, ref in zip(tensors, references):
            ref = ref if ref.ndim == 3 else ref.reshape(1, -1, 2)
            ref = ref[: loc.shape[0], None, :, None]  # [B or 1, 1, Q, 1, 2] beside [B, M, Q, P, 2]
            if ref.shape[2] == loc.shape[2]:
                moved.append(float((loc - ref)[..., 0].square().mean().sqrt()))
        if moved:
            found[f"offset_share/{module}"] = _mean(moved)
    return found


def _neighbours(told: Told) -> dict[str, float]:
    """``attn_sim_next``, ``mixed_sim_next``: mean cosine between the maps of a module and of the same module one block
    before."""
    found: dict[str, float] = {}
    last: dict[tuple[str, str, torch.Size], Tensor] = {}
    for (module, key), tensors in told.items():
        if key not in ("attn", "mixed") or len(tensors) != 1:
            continue
        weights = tensors[0].float() if key == "mixed" else weights_of(tensors[0].float())
        kind = (key, re.sub(r"\d+", "#", module), weights.shape)
        if kind in last and weights.shape[-1] > 1 and kind[1] != module:
            found[f"{key}_sim_next/{module}"] = float(torch.cosine_similarity(last[kind], weights, dim=-1).mean())
        last[kind] = weights
    return found
