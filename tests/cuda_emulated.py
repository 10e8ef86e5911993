"""Builds the CUDA sources of csrc for the CPU (tests/cuda_emulator) and loads them as torch.ops.openrec_emulated."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ("dcnv3/cuda.cu", "selective_scan/cuda.cu", "deform_sample/cuda.cu")
_library: torch.library.Library | None = None


def why_not() -> str:
    """Why the emulator cannot be built here; empty if it can."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return "the emulator switches stacks on x86-64 Linux only"
    return "" if shutil.which("g++") else "no g++ to build the emulator with"


def load(folder: Path) -> tuple[object, ctypes.CDLL]:
    """The emulated operators and the probe functions; built once per version of the sources and folder."""
    global _library
    path = _build(folder)
    if _library is None:
        _library = torch.library.Library("openrec_emulated", "DEF")
        for schema in re.findall(r'm\.def\(((?:\s*"[^"]*")+)\s*\)', (ROOT / "csrc/library.cpp").read_text()):
            _library.define("".join(re.findall(r'"([^"]*)"', schema)))
        torch.ops.load_library(path)
    return torch.ops.openrec_emulated, ctypes.CDLL(str(path))


def _build(folder: Path) -> Path:
    emulator = ROOT / "tests/cuda_emulator"
    headers = [*(ROOT / "csrc").rglob("*.cuh"), *(ROOT / "csrc").rglob("*.h"), *emulator.iterdir()]
    sources = [*(ROOT / "csrc" / k for k in KERNELS), ROOT / "csrc/cuda_ops.cpp", *emulator.glob("*.cpp")]
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted({*headers, *sources}))).hexdigest()[:16]
    folder = folder / f"cuda_emulated_{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "emulated.so"
    with (folder / "lock").open("w") as lock:  # test processes share one build
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _compile(sources, folder, target)
    return target


def _compile(sources: list[Path], folder: Path, target: Path) -> None:
    torch_folder = Path(torch.__file__).parent
    flags = ["-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-w", "-DOPENREC_EMULATE_CUDA"]
    flags += ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests/cuda_emulator'}"]
    flags += ["-isystem", str(torch_folder / "include")]

    def compile_one(source: Path) -> str:
        made = folder / f"{source.parent.name}_{source.stem}.o"
        subprocess.run(["g++", *flags, "-x", "c++", "-c", str(source), "-o", str(made)], check=True)
        return str(made)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    libraries = [f"-L{torch_folder / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    temporary = target.with_suffix(".tmp")
    subprocess.run(["g++", "-shared", *objects, *libraries, "-o", str(temporary)], check=True)
    temporary.rename(target)
