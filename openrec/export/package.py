"""PyTorch packages (``.pt2``): a traced program, or one compiled ahead of time; with this package's compiled operators.

Both kinds need no config and no model code to run, only torch and, for the operators, ``import openrec``.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import openrec.ops  # noqa: F401  (registers the operators that a program may hold)
from openrec.errors import CheckpointError, ConfigError
from openrec.export.onnx_session import SIZES, check_size
from openrec.export.subject import Sizes, Subject
from openrec.export.trace import quiet, trace

_COMPILED = "aotinductor"  # a folder inside the package


def make_program(subject: Subject, sizes: Sizes, device: torch.device, steps: tuple[int, int] = (1, 1)) -> Any:
    """The traced program on ``device``, with the operators that run there."""
    return trace(subject, sizes, device, steps)


def steps_of(sizes: Sizes) -> tuple[int, int]:
    """Steps of sides (px) that a compiled program takes: every size of a ratio bucket is a multiple of them."""
    height, width = ((1 if low == high else 8 if low % 8 == high % 8 == 0 else 4) for low, high in sizes)
    return height, min(width, 4)


def texts_of(subject: Subject, sizes: Sizes, device: torch.device, steps: tuple[int, int] = (1, 1)) -> dict[str, str]:
    """Metadata of the package."""
    return {**subject.card.metadata(), SIZES: sizes.text(steps), "openrec.device": device.type}


def save_program(program: Any, path: Path, texts: dict[str, str]) -> None:
    """Write a ``torch.export`` package."""
    for node in program.graph.nodes:  # paths of this machine
        node.meta.pop("stack_trace", None)
    with quiet():
        torch.export.save(program, path, extra_files=texts)


def compile_program(program: Any, path: Path, texts: dict[str, str]) -> None:
    """Compile ahead of time (AOTInductor) and write the package.

    Raises:
        ConfigError: the compiler failed, or there is none.
    """
    from torch._inductor import aoti_compile_and_package

    options = {"aot_inductor.metadata": texts}
    try:
        with quiet(), torch.no_grad():
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    except Exception as error:  # compilers fail in many ways
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ConfigError(
            f"export: AOTInductor could not compile the model ({lines[0][:300]}). It needs a C++ compiler (g++); "
            "--to pt2 makes a package that needs none."
        ) from error


def is_compiled(path: str | Path) -> bool:
    """Whether the package was compiled ahead of time.

    Raises:
        CheckpointError: not a package.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any(_COMPILED in Path(name).parts for name in archive.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f'"{path}" is no PyTorch package ({error}). Is it complete?') from error


class PackageBackend:
    """Runs a ``.pt2`` file; see ``openrec.reading.backends``.

    Raises:
        CheckpointError: not such a package, one of another version of torch, or made for another device.
    """

    def __init__(self, path: str | Path, device: torch.device) -> None:
        compiled = is_compiled(path)
        try:
            with quiet():
                self.metadata, self._call = _open_compiled(path) if compiled else _open_traced(path)
        except Exception as error:  # torch raises what it finds: version, missing operator, damage
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise CheckpointError(
                f'"{path}" cannot be loaded ({first[:300]}). It was exported with another torch or openrec, or without '
                "the compiled operators of this machine: export it again here."
            ) from error
        made_for = self.metadata.get("openrec.device", "cpu")
        if made_for != device.type:
            raise CheckpointError(
                f'"{path}" was made for {made_for}, but {device.type} was asked for. Use device="{made_for}", or '
                f"export it again with --device {device.type}."
            )
        self.device = device
        self.name = f"{'AOTInductor' if compiled else 'torch.export'} {torch.__version__} on {device.type}"
        self.sizes: dict[str, list[int]] = json.loads(self.metadata.get(SIZES, "{}"))

    @torch.no_grad()
    def run(self, images: np.ndarray) -> Any:
        """float32 ``[B, C, H, W]`` -> probabilities ``[B, T, classes]``."""
        check_size(images.shape, self.sizes)
        return self._call(torch.from_numpy(images).to(self.device))


def _open_traced(path: str | Path) -> tuple[dict[str, str], Any]:
    from openrec.export_format import CHARSET, CONFIG, FORMAT, PREPROCESS

    texts = dict.fromkeys((CONFIG, CHARSET, PREPROCESS, FORMAT, SIZES, "openrec.device"), "")
    program = torch.export.load(path, extra_files=texts)
    metadata = {k: v if isinstance(v, str) else v.decode() for k, v in texts.items() if v}
    return metadata, program.module()


def _open_compiled(path: str | Path) -> tuple[dict[str, str], Any]:
    from torch._inductor import aoti_load_package

    loaded = aoti_load_package(str(path))
    return dict(loaded.get_metadata()), loaded
