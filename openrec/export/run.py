"""Export a trained model: make it, compare it with PyTorch, and only then write it."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from openrec.errors import ConfigError
from openrec.export import onnx_file, package, verify
from openrec.export.onnx_session import OnnxBackend
from openrec.export.subject import Sizes, Subject
from openrec.recognizer import Recognizer

logger = logging.getLogger("openrec")
KINDS = {"onnx": ".onnx", "pt2": ".pt2", "aoti": ".aoti.pt2", "safetensors": ".safetensors"}


class Exported(NamedTuple):
    """A file that was written, and how it compared with PyTorch."""

    path: Path
    agreement: verify.Agreement
    sizes: Sizes | None

    def __str__(self) -> str:
        lines = [f"{self.path} ({self.path.stat().st_size / 1e6:.1f} MB)"]
        if self.sizes is not None:
            lines.append(f"pictures of height {_range(self.sizes.height)} and width {_range(self.sizes.width)} px")
        return "\n".join([*lines, f"compared with PyTorch: {self.agreement}"])


def _range(side: tuple[int, int]) -> str:
    return str(side[0]) if side[0] == side[1] else f"{side[0]} to {side[1]}"


def export(
    recognizer: Recognizer,
    path: str | Path,
    kind: str = "onnx",
    *,
    images: Any = None,
    count: int = 200,
    size: tuple[int, int] | None = None,
    max_width: int | None = None,
    opset: int = 18,
    half: bool = False,
    device: str = "cpu",
) -> Exported:
    """Write ``path``, which ``openrec.load`` reads.

    Args:
        recognizer: from a checkpoint; of a GTC model its branch is exported (``openrec.load(path, branch="gtc")``).
        kind: of ``KINDS``: ONNX, a traced PyTorch program, one compiled ahead of time, or the weights alone.
        images: what to compare on: paths, folders, arrays; None: rendered words.
        count: pictures to compare on.
        size: (height, width) px of all pictures; None: free, in the range that the model takes.
        max_width: px; widest picture. Default: what the model takes, see ``Subject.sizes``.
        opset: of ONNX.
        half: weights in float16 (safetensors only).
        device: ``cuda`` makes a package for the GPU.

    Raises:
        ConfigError: an option or a model that cannot be exported so.
        ExportRefused: the result does not agree with PyTorch; names the first layer that differs.
    """
    if kind not in KINDS:
        raise ConfigError(f"export: expected one of {', '.join(KINDS)}, got {kind!r}.")
    if half and kind != "safetensors":
        raise ConfigError("export: float16 is for safetensors alone; ONNX and packages compute in float32.")
    if count < 1:
        raise ConfigError(f"export: at least one picture is needed for the comparison, got {count}.")
    path = Path(path)
    pictures = verify.pictures(images, recognizer.charset, count)
    if kind == "safetensors":
        return _weights(recognizer, path, half, pictures)
    subject = Subject(recognizer)
    sizes = Sizes((size[0], size[0]), (size[1], size[1])) if size else subject.sizes(max_width)
    write = _onnx if kind == "onnx" else _package
    return write(subject, sizes, path, pictures, opset=opset, compiled=kind == "aoti", device=torch.device(device))


def _onnx(subject: Subject, sizes: Sizes, path: Path, pictures: list[Any], *, opset: int, **_: Any) -> Exported:
    graph = onnx_file.make_graph(subject, sizes, opset)
    content = graph.content()
    backend = OnnxBackend(content, torch.device("cpu"))
    found = _checked(subject, backend.run, pictures, sizes, lambda worst: onnx_file.layer_values(graph, worst))
    _write(path, lambda target: target.write_bytes(content))
    return Exported(path, found, sizes)


def _package(
    subject: Subject, sizes: Sizes, path: Path, pictures: list[Any], *, compiled: bool, device: torch.device, **_: Any
) -> Exported:
    steps = package.steps_of(sizes) if compiled else (1, 1)
    program = package.make_program(copy.deepcopy(subject), sizes, device, steps)
    texts = package.texts_of(subject, sizes, device, steps)
    found: list[verify.Agreement] = []

    def make(target: Path) -> None:
        (package.compile_program if compiled else package.save_program)(program, target, texts)
        backend = package.PackageBackend(target, device)
        run = lambda images: backend.run(images).cpu().numpy()  # noqa: E731
        found.append(_checked(subject, run, pictures, sizes, lambda worst: {}))

    _write(path, make)
    return Exported(path, found[0], sizes)


def _weights(recognizer: Recognizer, path: Path, half: bool, pictures: list[Any]) -> Exported:
    """Weights and metadata as safetensors; a whole GTC model stays whole."""
    from safetensors.torch import save_file

    from openrec.recognizer import load

    state = {k: v.detach().cpu().contiguous() for k, v in recognizer.model.state_dict().items()}
    if half:
        # what was learned: buffers such as a spline's tables are small, and their last digits are pixels
        learned = {name for name, _ in recognizer.model.named_parameters(remove_duplicate=False)}
        state = {k: v.half() if k in learned and v.is_floating_point() else v for k, v in state.items()}
    # one tensor under two names is written twice: the format knows no sharing
    state = {k: v.clone() for k, v in state.items()}
    found = verify.Agreement()

    def make(target: Path) -> None:
        nonlocal found
        save_file(state, str(target), metadata=recognizer.card.metadata())
        found = verify.compare_texts(recognizer, load(target, device="cpu", branch=recognizer.branch), pictures)
        if not half and not found.good:
            raise verify.refuse(found, None)

    _write(path, make)
    return Exported(path, found, None)


def _checked(
    subject: Subject,
    run: Callable[[np.ndarray], np.ndarray],
    pictures: list[Any],
    sizes: Sizes,
    inside: Callable[[np.ndarray], dict[str, list[np.ndarray]]],
) -> verify.Agreement:
    """The agreement, or ``ExportRefused``."""
    found = verify.compare(subject, run, pictures, sizes)
    if not found.good:
        assert found.worst is not None
        raise verify.refuse(found, verify.first_difference(subject, found.worst[:1], inside(found.worst[:1])))
    return found


def _write(path: Path, make: Callable[[Path], object]) -> None:
    """``make`` a file beside its place, then move it there whole; nothing stays of one that failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        temporary = Path(folder) / path.name
        make(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)


__all__ = ["KINDS", "Exported", "export"]
