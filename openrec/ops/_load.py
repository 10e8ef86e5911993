"""Finds and loads the compiled operators, and remembers why they could not be loaded.

``OPENREC_OPS=torch`` or ``=reference`` makes ``backend="auto"`` mean that, without loading anything.
``OPENREC_CPU_ISA=avx512|avx2|baseline`` forces the instruction set of the CPU kernels.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch

Backend = Literal["auto", "native", "torch", "reference", "parallel"]
BACKENDS = get_args(Backend)
INTERFACE = 1  # csrc/cpu/dispatch.cpp holds the same number
HOW = "build it with: pip install --no-build-isolation -e . (or python setup.py build_ext --inplace)"


@dataclass
class Native:
    """What was loaded: reasons by device type, empty where the kernels are usable."""

    reasons: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    library: ctypes.CDLL | None = None

    def text(self, function: str, *arguments) -> str:
        """Call a C function of the library that returns a string; empty without a library or an answer."""
        if self.library is None:
            return ""
        call = getattr(self.library, function)
        call.restype = ctypes.c_char_p
        return (call(*arguments) or b"").decode()

    @property
    def info(self) -> str:
        """What the library was built for."""
        return self.text("openrec_build_info")

    @property
    def isa(self) -> str:
        """Instruction set of the CPU kernels in use."""
        return self.text("openrec_cpu_isa")

    def isa_levels(self) -> list[str]:
        """Instruction sets that this machine can run, best first."""
        names = [self.text("openrec_cpu_level", i) for i in range(8)]
        return [name for name in names if name]

    def force_isa(self, name: str) -> None:
        """Use the kernels of another instruction set from now on; refuses one that this machine lacks."""
        if self.library is None or not self.library.openrec_set_cpu_isa(name.encode()):
            raise ValueError(f'OPENREC_CPU_ISA must be one of {", ".join(self.isa_levels())} here, got "{name}"')


def _load() -> Native:
    """Load ``openrec/_C*.so``; whatever goes wrong becomes a reason."""
    native = Native()
    try:
        native.path = _find()
        torch.ops.load_library(native.path)
        library = ctypes.CDLL(str(native.path))
        found = library.openrec_interface()
        if found != INTERFACE:
            raise ImportError(f"{native.path} was built from other sources (interface {found}, not {INTERFACE}); {HOW}")
        native.library = library
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        native.reasons = {"cpu": reason, "cuda": reason}
        return native
    if "architectures" not in native.info:
        native.reasons["cuda"] = "the library was built without nvcc, for the CPU alone"
    elif not torch.cuda.is_available():
        native.reasons["cuda"] = "torch sees no CUDA GPU on this machine"
    forced = os.environ.get("OPENREC_CPU_ISA")
    if forced and forced != native.isa:
        warnings.warn(f"OPENREC_CPU_ISA={forced} cannot run here; using {native.isa}", stacklevel=2)
    return native


def _find() -> Path:
    if _default != "auto" and _default != "native":
        raise ImportError(f"OPENREC_OPS={_default} asks for plain PyTorch")
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < (2, 10):
        raise ImportError(f"the compiled operators need torch >= 2.10, this is {torch.__version__}")
    found = sorted(Path(__file__).parent.parent.glob("_C*.so"))
    if not found:
        raise ImportError(f"the extension openrec/_C.abi3.so was not built; {HOW}")
    return found[0]


def _default_backend() -> str:
    name = os.environ.get("OPENREC_OPS", "auto")
    if name not in BACKENDS:
        warnings.warn(f'OPENREC_OPS must be one of {", ".join(BACKENDS)}, got "{name}"; using auto', stacklevel=2)
        return "auto"
    return name


_default = _default_backend()
native = _load()
_usable = frozenset({"cpu", "cuda"} - set(native.reasons))
_warned: set[str] = set()
_forced = ""


@contextmanager
def forced(backend: str) -> Iterator[None]:
    """Every operator runs by ``backend`` inside, whatever its caller asks for: what exporters need."""
    global _forced
    before, _forced = _forced, backend
    try:
        yield
    finally:
        _forced = before


def choose(op: str, backend: str, device: torch.device) -> str:
    """The backend that runs: ``"native"``, ``"torch"`` (fast plain PyTorch), ``"reference"`` or ``"parallel"``
    (plain PyTorch without loops or operators of our own, for exporters).

    Raises:
        ValueError: an unknown name. RuntimeError: ``"native"`` was asked for and is not loaded; says why.
    """
    if backend not in BACKENDS:
        raise ValueError(f'{op}: backend must be one of {", ".join(BACKENDS)}, got "{backend}"')
    asked = _forced or (_default if backend == "auto" else backend)
    if asked in ("torch", "reference", "parallel"):
        return asked
    if device.type in _usable:
        return "native"
    reason = native.reasons.get(device.type, f"there are no kernels for the device type {device.type}")
    if asked == "native":
        raise RuntimeError(f"{op}: the compiled operators are not loaded: {reason}")
    if not torch.compiler.is_compiling() and device.type in native.reasons and device.type not in _warned:
        _warned.add(device.type)
        warnings.warn(f"openrec.ops runs in plain PyTorch on {device.type}, which is slower: {reason}", stacklevel=3)
    return "torch"


def available() -> dict[str, str]:
    """Backends by name: ``"ok"``, or the reason why one is not loaded."""
    return {"torch": "ok", **{f"native {d}": native.reasons.get(d, "ok") for d in ("cpu", "cuda")}}


def no_double_backward(op: str) -> None:
    """Make the second derivative of a backward operator an error instead of a silent zero."""

    def refuse(ctx, *grads):
        raise NotImplementedError(f'{op} has no second derivative; use backend="reference" for gradients of gradients')

    torch.library.register_autograd(f"openrec::{op}", refuse, setup_context=lambda ctx, inputs, output: None)
