"""Compare a function or module with stored reference numbers (``tests/golden``).

A case is an entry of ``index_*.json``: arrays of inputs, weights, outputs and gradients, computed in float64 by a
public implementation. ``tol`` holds, per array, its scale and the error of a float32 evaluation of the reference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openrec import ops

GOLDEN = Path(__file__).parent / "golden"
Outputs = Mapping[str, Tensor]


def load_cases(index: str) -> dict[str, dict]:
    """Cases of ``tests/golden/<index>`` by id."""
    cases = json.loads((GOLDEN / index).read_text(encoding="utf-8"))["cases"]
    return {case["id"]: case for case in cases}


def check_op(case: dict, call: Callable[[dict[str, Tensor], dict], Outputs], dtype: torch.dtype) -> None:
    """Run ``call(inputs, args)`` for every run of an operator case and compare outputs and gradients."""
    arrays = _arrays(case)
    for run in case["runs"]:
        inputs = _inputs(arrays, run, dtype)
        outputs = call(inputs, case["args"])
        errors = _compare_outputs(arrays, run, outputs, dtype)
        errors += _compare_gradients(arrays, run, outputs, inputs, {}, dtype)
        assert not errors, "\n".join(errors)


def check_module(
    case: dict,
    build: Callable[[], nn.Module],
    dtype: torch.dtype,
    call: Callable[[nn.Module, dict[str, Tensor], dict], Outputs] | None = None,
) -> None:
    """Load the case's weights into ``build()`` and compare outputs, statistics and gradients of every run."""
    arrays = _arrays(case)
    for run in case["runs"]:
        module = build()
        state = {k[3:]: torch.from_numpy(v) for k, v in arrays.items() if k.startswith("sd.")}
        fixed = {k: v for k, v in module.state_dict().items() if k in (case.get("state_dict_omitted") or ())}
        module.load_state_dict({**fixed, **state})
        module.to(dtype).train(run["mode"] == "train")
        inputs = _inputs(arrays, run, dtype)
        outputs = call(module, inputs, run) if call else {"out": module(*inputs.values())}
        errors = _compare_outputs(arrays, run, outputs, dtype)
        after = f"{run['name']}.sd_after."
        for name in (n for n in arrays if n.startswith(after)):
            errors += _compare(arrays, run, name, module.state_dict()[name[len(after) :]], dtype)
        errors += _compare_gradients(arrays, run, outputs, inputs, dict(module.named_parameters()), dtype)
        assert not errors, "\n".join(errors)


def _arrays(case: dict) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / case["file"], allow_pickle=False) as file:
        return dict(file)


def _inputs(arrays: Mapping[str, np.ndarray], run: dict, dtype: torch.dtype) -> dict[str, Tensor]:
    inputs = {}
    for name in run["inputs"]:
        tensor = torch.from_numpy(arrays[f"{run['name']}.in.{name}"])
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        inputs[name] = tensor.clone().requires_grad_() if name in run["grad_wrt"] else tensor
    return inputs


def _compare_outputs(arrays, run, outputs: Outputs, dtype) -> list[str]:
    return [e for k in run["outputs"] for e in _compare(arrays, run, f"{run['name']}.out.{k}", outputs[k], dtype)]


def _compare_gradients(arrays, run, outputs, inputs, parameters, dtype) -> list[str]:
    if not run["grad_outputs"]:
        return []
    name = run["name"]
    loss = sum((outputs[k] * torch.from_numpy(arrays[f"{name}.gout.{k}"])).sum() for k in run["grad_outputs"])
    prefix = f"{name}.gp."
    wanted = {k[len(prefix) :].split("@")[0] for k in arrays if k.startswith(prefix)} & set(parameters)
    leaves = {f"{name}.gin.{k}": inputs[k] for k in run["grad_wrt"]} | {prefix + k: parameters[k] for k in wanted}
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    errors = []
    for (key, leaf), gradient in zip(leaves.items(), gradients):
        gradient = torch.zeros_like(leaf) if gradient is None else gradient
        if key in arrays:
            errors += _compare(arrays, run, key, gradient, dtype)
        else:  # stored as sums
            rows = gradient.reshape(gradient.shape[0], -1)
            errors += _compare(arrays, run, key + "@sum0", gradient.sum(0), dtype)
            errors += _compare(arrays, run, key + "@sum1", rows.sum(1), dtype)
    return errors


def _compare(arrays: Mapping[str, Any], run: dict, name: str, got: Tensor, dtype: torch.dtype) -> list[str]:
    want = arrays[name]
    if tuple(got.shape) != want.shape:
        return [f"{name}: shape {tuple(got.shape)}, expected {want.shape}"]
    if name not in run["tol"]:  # integers
        return [] if np.array_equal(got.numpy(), want) else [f"{name}: {got}, expected {want}"]
    scale, error32 = run["tol"][name][:2]
    error = float(np.abs(got.detach().double().numpy() - want.astype(np.float64)).max(initial=0) / scale)
    limit = max(2e-5, 20 * error32) if dtype == torch.float32 else 1e-9 if want.dtype == np.float64 else 1e-6
    return [] if error <= limit else [f"{name}: relative error {error:.2e}, allowed {limit:.1e}"]


def call_dcnv3(i, a):
    geometry = [a[k] for k in ("kernel_size", "stride", "pad", "dilation", "group", "offset_scale", "remove_center")]
    return {"out": ops.dcnv3(i["input"], i["offset"], i["mask"], *geometry)}


def call_scan(i, a):
    out = ops.selective_scan(**i, **a)
    return {"out": out[0], "last_state": out[1]} if a["return_last_state"] else {"out": out}
