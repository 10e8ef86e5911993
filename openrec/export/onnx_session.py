"""Runs an exported ONNX file with onnxruntime, behind the same ``Recognizer`` as a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openrec.errors import CheckpointError, ConfigError
from openrec.export_format import INPUT_NAME, OUTPUT_NAME

SIZES = "openrec.sizes"  # metadata: {"height": [least, most, multiple of], "width": [...]}, px
_PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}


def onnxruntime() -> Any:
    """The package.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import onnxruntime as runtime
    except ImportError as error:
        raise ConfigError(
            f'reading an ONNX file needs onnxruntime ({error}). Install it: pip install "openrec[export]" (for a GPU: '
            "pip install onnxruntime-gpu)."
        ) from error
    return runtime


class OnnxBackend:
    """A session; see ``openrec.reading.backends``.

    Args:
        path: the file, or its content.
        device: ``cuda`` needs onnxruntime-gpu.
        threads: of one operator; None: as many as PyTorch uses.

    Attributes:
        metadata: texts of ``openrec.export_format``.

    Raises:
        CheckpointError: not an ONNX file that onnxruntime can load.
        ConfigError: onnxruntime is missing, or has no GPU support where a GPU was asked for.
    """

    def __init__(self, path: str | Path | bytes, device: torch.device, threads: int | None = None) -> None:
        runtime = onnxruntime()
        provider = _PROVIDERS.get(device.type)
        if provider not in runtime.get_available_providers():
            raise ConfigError(
                f"device: this onnxruntime cannot run on {device.type} (it has "
                f"{', '.join(runtime.get_available_providers())}). Use device='cpu', or install onnxruntime-gpu."
            )
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.log_severity_level = 3
        where = "the graph" if isinstance(path, bytes) else str(path)
        try:
            given = path if isinstance(path, bytes) else str(path)
            self.session = runtime.InferenceSession(given, options, providers=[provider])
        except Exception as error:  # onnxruntime's own classes, one per reason
            raise CheckpointError(f'"{where}" cannot be loaded by onnxruntime: {str(error)[:300]}') from error
        self.metadata: dict[str, str] = dict(self.session.get_modelmeta().custom_metadata_map)
        self.name = f"onnxruntime {runtime.__version__} on {device.type}"
        self.input = self.session.get_inputs()[0].name
        names = [output.name for output in self.session.get_outputs()]
        self.output = OUTPUT_NAME if OUTPUT_NAME in names else names[-1]
        self.sizes: dict[str, list[int]] = json.loads(self.metadata.get(SIZES, "{}"))

    def run(self, images: np.ndarray) -> np.ndarray:
        """float32 ``[B, C, H, W]`` -> probabilities ``[B, T, classes]``.

        Raises:
            ConfigError: pictures of a size that the graph was not made for.
        """
        check_size(images.shape, self.sizes)
        return self.session.run([self.output], {self.input: images})[0]


def check_size(shape: tuple[int, ...], sizes: dict[str, list[int]]) -> None:
    """Refuse what an exported graph was not made for, in words."""
    for name, given in (("height", shape[-2]), ("width", shape[-1])):
        low, high, step = sizes.get(name, (0, given, 1))
        if not low <= given <= high or given % step:
            multiple = f", in steps of {step}" if step > 1 else ""
            raise ConfigError(
                f"the model was exported for pictures of {name} {low} to {high} px{multiple}, got {given}. Export it "
                "again with --max-width, or read with the checkpoint."
            )


__all__ = ["INPUT_NAME", "SIZES", "OnnxBackend", "check_size", "onnxruntime"]
