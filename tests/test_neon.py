"""The CPU kernels on a processor without x86's vectors: cross-compiled for 64-bit ARM and run in an emulator."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
FLAGS = ["-std=c++17", "-O2", "-fno-math-errno", "-fno-trapping-math", "-static", "-DOPENREC_ISA=baseline"]


def sources() -> list[Path]:
    csrc = ROOT / "csrc"
    return [ROOT / "tests/neon_check.cpp", csrc / "cpu/kernels.cpp", *sorted(csrc.glob("*/cpu_kernel.cpp"))]


def check(compiler: str, runner: list[str], program: Path) -> str:
    subprocess.run([compiler, *FLAGS, f"-I{ROOT / 'csrc'}", *map(str, sources()), "-o", str(program)], check=True)
    done = subprocess.run([*runner, str(program)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not (COMPILER and EMULATOR), reason="needs g++-aarch64-linux-gnu and qemu-user")
def test_arm_kernels_agree_with_float64(tmp_path):
    assert "0 wrong" in check(COMPILER, [EMULATOR], tmp_path / "neon_check")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_check_itself_on_this_machine(tmp_path):
    assert "0 wrong" in check("g++", [], tmp_path / "native_check")
