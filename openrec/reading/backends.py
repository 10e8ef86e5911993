"""What computes: a PyTorch model here; exported files elsewhere, behind the same three lines.

A backend is an object with ``run(images) -> predictions``. ``images`` is a float32 array ``[B, C, H, W]`` in [-1, 1],
``predictions`` what the model's post-processor decodes: probabilities ``[B, T, classes]`` as an array or tensor (a
tuple's or list's last element counts), or ``GTCDecoder``'s mapping.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from openrec.errors import ConfigError


class Backend(Protocol):
    """Computes predictions; ``name`` is shown to the user."""

    name: str

    def run(self, images: np.ndarray) -> Any:
        """float32 ``[B, C, H, W]`` -> predictions."""
        ...


# Exported files: suffix -> "module:class". The class is called with (path, device) and has ``metadata``, the texts of
# ``openrec.export_format``.
EXPORTED = {
    ".onnx": "openrec.export.onnx_session:OnnxBackend",
    ".pt2": "openrec.export.package:PackageBackend",
}


def open_exported(path: Any, suffix: str, device: torch.device) -> Any:
    """The backend of an exported file.

    Raises:
        ConfigError: the package that runs such files is not installed (from the backend itself).
    """
    module, name = EXPORTED[suffix].split(":")
    return getattr(importlib.import_module(module), name)(path, device)


def choose_device(device: str | torch.device | None = "auto") -> torch.device:
    """``auto``: the GPU where there is one. ``gpu`` means ``cuda``, as in a config.

    Raises:
        ConfigError: a device this machine lacks.
    """
    if isinstance(device, torch.device):
        return device
    wanted = {"auto": "", "gpu": "cuda", None: ""}.get(device, device)
    if not wanted:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(str(wanted))
    except RuntimeError as error:
        raise ConfigError(f"device: expected auto, cpu, cuda, cuda:1 or mps, got {device!r}.") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device: {device} was asked for, but torch finds no GPU. Use device='auto' or 'cpu'.")
    return chosen


class TorchBackend:
    """A model in evaluation mode on a device.

    Args:
        amp: bf16 autocast.
        compile: ``torch.compile`` the model; worth it for many images of few sizes.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, amp: bool = False, compile: bool = False) -> None:
        self.model, self.device, self.amp = model.eval().to(device), device, amp
        self.name = f"PyTorch {torch.__version__} on {device}"
        self._call: Any = torch.compile(self.model, dynamic=True) if compile else self.model

    @torch.no_grad()
    def run(self, images: np.ndarray) -> Any:
        batch = torch.from_numpy(images).to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            return self._call(batch)
