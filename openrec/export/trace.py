"""From a model to a traced program in which batch, height and width are free."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from openrec.errors import ConfigError
from openrec.export.subject import Sizes, Subject
from openrec.ops._load import forced
from openrec.ops.log_scan import longest_sequence

logger = logging.getLogger("openrec")
LARGEST_BATCH = 4096


@contextmanager
def standard_operators(sizes: Sizes) -> Iterator[None]:
    """Operators of this package become standard ones: sampling a grid sample, the scan a logarithmic one."""
    with forced("parallel"), longest_sequence(sizes.positions()):
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' own warnings about things a user cannot change."""
    names = (
        "torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir", "torch._export", "torch._inductor",
        "torch.__trace",
    )  # fmt: skip
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def trace(subject: Subject, sizes: Sizes, device: torch.device | None = None, steps: tuple[int, int] = (1, 1)) -> Any:
    """The ``torch.export`` program of ``subject``.

    Args:
        steps: px; free heights and widths are multiples of these. Compilers need it: the size of a map is then a
            product, not a rounded quotient.

    Raises:
        ConfigError: the model cannot be traced with free sizes; says what to do.
    """
    example = subject.example(sizes)
    if device is not None:
        subject, example = subject.to(device), example.to(device)
    dims: dict[int, Any] = {0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)}
    for axis, (low, high), step in ((2, sizes.height, steps[0]), (3, sizes.width, steps[1])):
        if low < high and step == 1:
            dims[axis] = torch.export.Dim.AUTO(min=low, max=high)
        elif low < high:
            dims[axis] = step * torch.export.Dim(f"side{axis}", min=-(-low // step), max=high // step)
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(subject, (example,), dynamic_shapes=(dims,), strict=False)
    except Exception as error:  # a tracer may raise anything
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"export: the model cannot be traced for pictures of any size ({first[:200]}). Give one size for all: "
            f"--size {sizes.height[1]} {sizes.width[1]}."
        ) from error
    fixed = _fixed(program, dims)
    if fixed:
        logger.warning("export: the model has one %s only: %d px", *fixed)
    return program


def _fixed(program: Any, dims: dict[int, Any]) -> tuple[str, int] | None:
    """A side that the tracer could not leave free."""
    node = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == "images")
    for axis, name in ((2, "height"), (3, "width")):
        size = node.meta["val"].shape[axis]
        if axis in dims and isinstance(size, int):
            return name, size
    return None
