"""What this machine runs openrec with: ``python tools/doctor.py``. Paste the output into a bug report."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SWITCHES = ("OPENREC_OPS", "OPENREC_CPU_ISA", "OPENREC_BUILD", "OPENREC_CUDA_ARCHS", "OMP_NUM_THREADS")
PACKAGES = ("numpy", "opencv-python-headless", "opencv-python", "lmdb", "Pillow", "safetensors", "causal-conv1d")


def first_line(*command: str) -> str:
    """First line that a program prints, or that it is missing."""
    if not shutil.which(command[0]):
        return "not found"
    lines = subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()
    return next((line for line in reversed(lines) if "release" in line), lines[0] if lines else "no answer")


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def row(name: str, value: object) -> None:
    print(f"{name:<22} {value}")


def main() -> None:
    import torch

    from openrec import __version__
    from openrec.ops import available
    from openrec.ops._load import native

    row("openrec", f"{__version__} in {Path(__file__).resolve().parents[1]}")
    row("python", f"{platform.python_version()} on {platform.platform()}, {os.cpu_count()} cores")
    row("torch", f"{torch.__version__}, CUDA build {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        row(f"GPU {index}", f"{torch.cuda.get_device_name(index)}, sm_{major}{minor}, {memory:.0f} GiB")
    if not torch.cuda.is_available():
        row("GPU", "none that torch can use")
    row("driver", first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"))
    row("nvcc", first_line("nvcc", "--version"))
    row("C++ compiler", first_line(os.environ.get("CXX", "c++"), "--version"))
    for backend, state in available().items():
        row(f"ops: {backend}", state)
    row("extension", f"{native.path}, built for {native.info}" if native.library else "not loaded")
    if native.library:
        row("CPU kernels", f"{native.isa} of {', '.join(native.isa_levels())}")
    for package in PACKAGES:
        row(package, installed(package))
    for name in SWITCHES:
        if name in os.environ:
            row(name, os.environ[name])


if __name__ == "__main__":
    main()
