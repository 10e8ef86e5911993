"""Data sets, samplers and the loader that turns a config into batches."""

from __future__ import annotations

from typing import Any

from openrec.data.types import Batch, Pick, Sample, Skipped

__all__ = ["Batch", "Pick", "Sample", "Skipped", "build_dataset", "build_loader"]


def __getattr__(name: str) -> Any:
    # The loader imports the transforms, which a caller of the types alone need not wait for.
    if name in ("build_loader", "build_dataset"):
        from openrec.data import loader

        return getattr(loader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
