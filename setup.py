"""Packaging, and the only build logic: compiles ``csrc/`` into ``openrec/_C.abi3.so``. Metadata is in pyproject.toml.

    OPENREC_BUILD=auto|cpu|cuda|none   auto (default): CUDA where nvcc is found, else CPU, else nothing
    OPENREC_CUDA_ARCHS="80;90"         GPU architectures, default all of DEFAULT_ARCHS and PTX of the newest
    CXX, NVCC, CUDA_HOME, MAX_JOBS     compilers and the number of compilations at a time

Nothing here needs a GPU, a CUDA build of torch or a network, and nothing here fails an install: what is missing leads
to the next simpler build with one sentence, and in the end to the plain-PyTorch operators. The library uses PyTorch's
stable ABI (torch >= 2.10, any Python >= 3.10), so the torch it is compiled against need not be the one it runs with.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import PathFinder
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "cpu", "cuda", "none")
MIN_TORCH = (2, 10)
# 8.6 and 8.9 run the code of 8.0, which saves a quarter of the build.
DEFAULT_ARCHS = ("75", "80", "90", "100", "120")

# One source, several instruction sets; openrec chooses at run time (csrc/cpu/dispatch.cpp).
X86_LEVELS = {
    "avx512": "-mavx512f -mavx512dq -mavx512bw -mavx512vl -mavx2 -mfma -mf16c -mbmi2 -mprefer-vector-width=512",
    "avx2": "-mavx2 -mfma -mf16c -mbmi2",
    "baseline": "",
}
COMMON = "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -DNDEBUG"


class Unavailable(Exception):
    """Why a build cannot be made: one sentence."""


def say(sentence: str) -> None:
    print(f"openrec: {sentence}", file=sys.stderr, flush=True)


def find_torch() -> Path:
    """The folder of an installed torch that is new enough; torch itself is not imported."""
    spec = PathFinder.find_spec("torch", [p for p in sys.path if p])
    if spec is None or spec.origin is None:
        raise Unavailable(
            "torch is not installed where the build runs (pip's build isolation hides it); "
            "for the compiled operators install torch first and use: pip install --no-build-isolation ."
        )
    folder = Path(spec.origin).parent
    found = re.search(r"__version__ = '(\d+)\.(\d+)", (folder / "version.py").read_text())
    if found is None or tuple(map(int, found.groups())) < MIN_TORCH:
        version = ".".join(found.groups()) if found else "an unknown version"
        raise Unavailable(f"the compiled operators need torch >= 2.10 to be built, found {version}")
    if not (folder / "include/torch/csrc/stable/library.h").is_file():
        raise Unavailable(f"the torch in {folder} comes without its C++ headers")
    return folder


def find_compiler() -> list[str]:
    """The C++ compiler as a command."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(shlex.split(name)[0]):
            return shlex.split(name)
    raise Unavailable("no C++ compiler was found (on Debian or Ubuntu: apt-get install g++)")


def find_nvcc() -> str:
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    candidates = [os.environ.get("NVCC"), *(f"{home}/bin/nvcc" for home in homes if home), "nvcc"]
    for name in candidates:
        path = shutil.which(name) if name else None
        if path:
            return path
    raise Unavailable("nvcc was not found, so the GPU kernels are left out")


def cudart_folder(nvcc: str) -> Path:
    """Where ``libcudart_static.a`` lies: nvcc itself knows."""
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull], capture_output=True, text=True)
    listed = re.findall(r'"?-L([^"\s]+)"?', dry.stderr)
    top = Path(nvcc).resolve().parent.parent
    for folder in [*map(Path, listed), top / "lib64", top / "lib", top / f"targets/{platform.machine()}-linux/lib"]:
        if (folder / "libcudart_static.a").is_file():
            return folder
    raise Unavailable(f"libcudart_static.a of {nvcc} was not found, so the GPU kernels are left out")


def cuda_archs() -> list[str]:
    text = os.environ.get("OPENREC_CUDA_ARCHS", "")
    archs = [a.replace(".", "") for a in re.split(r"[;, ]+", text) if a] or list(DEFAULT_ARCHS)
    bad = [a for a in archs if not re.fullmatch(r"\d{2,3}[af]?", a)]
    if bad:
        raise SystemExit(f'OPENREC_CUDA_ARCHS: "{bad[0]}" is no architecture; write for example "80;90" or "8.0;9.0"')
    return archs


def cuda_sources() -> list[Path]:
    sources = sorted((ROOT / "csrc").glob("*/*.cu"))
    if not sources:
        raise Unavailable("this source tree holds no GPU kernels")
    return sources


class Build:
    """All compilations of one build, as commands."""

    def __init__(self, mode: str, folder: Path):
        self.folder, self.mode = folder, mode
        self.torch, self.cxx = find_torch(), find_compiler()
        self.x86 = platform.machine().lower() in ("x86_64", "amd64")
        self.nvcc = find_nvcc() if mode == "cuda" else None
        self.cudart = cudart_folder(self.nvcc) if self.nvcc else None
        self.commands: list[list[str]] = []
        self.objects: list[str] = []
        self._collect()

    def _collect(self) -> None:
        csrc = ROOT / "csrc"
        levels = X86_LEVELS if self.x86 else {"baseline": ""}
        host = [csrc / "library.cpp", csrc / "cpu/dispatch.cpp", *sorted(csrc.glob("*/cpu.cpp"))]
        # The slowest first, so that no core waits at the end.
        if self.nvcc:
            host.append(csrc / "cuda_ops.cpp")
            for source in cuda_sources():
                self._add(source, source.parent.name, self._nvcc_flags())
        kernels = sorted(csrc.glob("*/cpu_kernel.cpp"), key=lambda path: -path.stat().st_size)
        for source in [*kernels, csrc / "cpu/kernels.cpp"]:
            for level, flags in levels.items():
                self._add(source, level, [*self.cxx, *COMMON.split(), *flags.split(), f"-DOPENREC_ISA={level}"])
        for source in host:
            self._add(source, "host", [*self.cxx, *COMMON.split(), *self._torch_flags()])

    def _add(self, source: Path, tag: str, command: list[str]) -> None:
        target = self.folder / f"{source.parent.name}-{source.stem}-{tag}.o"
        self.commands.append([*command, "-c", str(source), "-o", str(target)])
        self.objects.append(str(target))

    def _torch_flags(self) -> list[str]:
        info = f"{self.mode}; " + (f"architectures {' '.join(cuda_archs())}; " if self.nvcc else "") + self.cxx[0]
        flags = ["-DTORCH_TARGET_VERSION=0x020a000000000000", f"-I{ROOT / 'csrc'}", f"-isystem{self.torch / 'include'}"]
        flags += [f'-DOPENREC_BUILD_INFO="{info}"'] + ["-DOPENREC_X86_LEVELS"] * self.x86
        return flags + ["-DOPENREC_CUDA"] * bool(self.nvcc)

    def _nvcc_flags(self) -> list[str]:
        archs = cuda_archs()
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
        codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
        host = ["-ccbin", self.cxx[0], "-Xcompiler", "-fPIC,-fvisibility=hidden"]
        basic = ["-O3", "-std=c++17", "-DNDEBUG", f"-I{ROOT / 'csrc'}", "--threads", "0"]
        known = subprocess.run([str(self.nvcc), "--help"], capture_output=True, text=True).stdout
        if "--compress-mode" in known:  # a fifth of the size; older compilers do not know it
            basic.append("--compress-mode=size")
        return [str(self.nvcc), *basic, *host, *codes]

    def run(self, output: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(_run, self.commands))
        libraries = ["-ltorch", "-ltorch_cpu", "-lc10"]  # libtorch leads to libtorch_cuda where torch has it
        link = [*self.cxx, "-shared", *self.objects, f"-L{self.torch / 'lib'}", "-Wl,--no-as-needed", *libraries]
        link += ["-Wl,--as-needed", "-Wl,--exclude-libs,ALL"]
        if self.cudart:
            link += [f"-L{self.cudart}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        temporary = output.with_suffix(".tmp")
        _run([*link, "-Wl,-s", "-o", str(temporary)])
        temporary.replace(output)  # a running process keeps the old file


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(shlex.join(command), done.stdout, done.stderr, sep="\n", file=sys.stderr, flush=True)
        first = next((line for line in done.stderr.splitlines() if "error" in line), "see above")
        raise Unavailable(f"{Path(command[0]).name} failed: {first.strip()[:200]}")


class BuildNative(build_ext):
    """Builds the best of CUDA, CPU and nothing that this machine can."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name))
        wanted = os.environ.get("OPENREC_BUILD", "auto")
        for mode in ("cuda", "cpu") if wanted in ("auto", "cuda") else ("cpu",):
            try:
                Build(mode, Path(self.build_temp) / mode).run(output)
                return
            except Unavailable as reason:
                instead = "building for the CPU alone" if mode == "cuda" else "the operators will run in plain PyTorch"
                if mode == "cpu" or wanted == "cuda" or has_nvcc():
                    say(f"{reason}; {instead}.")
        output.unlink(missing_ok=True)  # an older build would not fit these sources
        remove_stale()

    def get_outputs(self) -> list[str]:
        return [path for path in super().get_outputs() if Path(path).is_file()]


class BuildPackage(build_py):
    """The package, with the smallest models of ``weights/``: ``openrec.load("tiny-en")`` works from a wheel."""

    def _weights(self) -> dict[str, Path]:
        if getattr(self, "editable_mode", False):
            return {}  # openrec looks into weights/ beside it
        target = Path(self.build_lib) / "openrec" / "weights"
        return {str(target / file.name): file for file in sorted((ROOT / "weights").glob("tiny-*.safetensors"))}

    def run(self) -> None:
        super().run()
        for target, file in self._weights().items():
            Path(target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self._weights()]


def has_nvcc() -> bool:
    """On a machine without nvcc nobody waits for GPU kernels, and nothing need be said."""
    try:
        return bool(find_nvcc())
    except Unavailable:
        return False


def remove_stale() -> None:
    """A library of an earlier in-place build would be loaded by these sources, which it may not fit."""
    if {"editable_wheel", "develop", "--inplace", "-i"} & set(sys.argv):
        (ROOT / "openrec/_C.abi3.so").unlink(missing_ok=True)


def extensions() -> list[Extension]:
    mode = os.environ.get("OPENREC_BUILD", "auto")
    if mode not in MODES:
        raise SystemExit(f'OPENREC_BUILD must be one of {", ".join(MODES)}, got "{mode}"')
    try:
        if mode != "none":
            find_torch(), find_compiler()
            return [Extension("openrec._C", sources=[], py_limited_api=True, optional=True)]
    except Unavailable as reason:
        say(f"{reason}; the operators will run in plain PyTorch.")
    remove_stale()
    return []


native = extensions()
setup(
    ext_modules=native,
    cmdclass={"build_ext": BuildNative, "build_py": BuildPackage},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if native else {},
)
