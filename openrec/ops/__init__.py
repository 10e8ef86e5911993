"""The operators of this package, each with a plain-PyTorch reference beside it (``*_ref``).

* ``dcnv3``: deformable convolution v3, channels last; without a mask the adaptive scan's sampler.
* ``selective_scan``, ``selective_scan_state``: the recurrence of Mamba and of DAMamba.
* ``deform_sample``: bilinear samples at free points.

``available()`` tells which backends run them here; ``keep_freed_memory()`` speeds up work on CPU.
"""

from __future__ import annotations

from openrec.ops.dcnv3 import dcnv3, dcnv3_ref
from openrec.ops.deform_sample import deform_sample, deform_sample_ref
from openrec.ops.memory import keep_freed_memory
from openrec.ops.selective_scan import (
    selective_scan,
    selective_scan_ref,
    selective_scan_state,
    selective_scan_state_ref,
)

__all__ = [
    "available",
    "dcnv3",
    "dcnv3_ref",
    "deform_sample",
    "deform_sample_ref",
    "keep_freed_memory",
    "selective_scan",
    "selective_scan_ref",
    "selective_scan_state",
    "selective_scan_state_ref",
]


def available() -> dict[str, str]:
    """Backends by name: ``"ok"``, or the reason why one is not loaded."""
    reason = "not part of this version: the operators run in plain PyTorch"
    return {"torch": "ok", "native cpu": reason, "native cuda": reason}
