"""A reproducible stand-in for trained weights and images, exact in integer arithmetic.

Element n of stream i is a hash of (n, i) in [0, 1); weights and inputs made of it have published statistics.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import torch
from torch import Tensor, nn

_MASK = np.uint64(2**32 - 1)


def uniform(count: int, stream: int) -> np.ndarray:
    """``count`` numbers in [0, 1)."""
    v = (np.uint64(2654435761) * np.arange(count, dtype=np.uint64) + np.uint64(40503 * stream + 12345)) & _MASK
    v = (np.uint64(73244475) * (v ^ (v >> np.uint64(16)))) & _MASK
    return (v ^ (v >> np.uint64(16))).astype(np.float64) / 2**32


def tensor(*shape: int, stream: int) -> Tensor:
    """float64 values in [-1, 1)."""
    return torch.from_numpy(2 * uniform(math.prod(shape), stream).reshape(shape) - 1)


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    """Fill all weights of a module, in float64; positional tables stay."""
    module.double()
    for i, (name, value) in enumerate(module.state_dict().items()):
        if value.ndim == 0:
            value.zero_()
        elif not name.endswith("pe"):
            u = torch.from_numpy(uniform(value.numel(), i)).view(value.shape) - 0.5
            if value.ndim == 1:
                value.copy_(float(name.endswith(("weight", "running_var"))) + 0.2 * u)
            else:
                value.copy_(2 * u * math.sqrt(3 / math.prod(value.shape[1:])))
    return module


def statistics(x: Tensor) -> list[float]:
    """Mean, population standard deviation, first and last element."""
    flat = x.detach().flatten()
    return [float(v) for v in (flat.mean(), flat.std(correction=0), flat[0], flat[-1])]


def digest(module: nn.Module) -> str:
    """SHA-256 of the names and shapes of a state dict, in order."""
    lines = (f"{k} {'x'.join(map(str, v.shape)) or 'scalar'}" for k, v in module.state_dict().items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
