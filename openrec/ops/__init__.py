"""The operators of this package, each with a plain-PyTorch reference beside it (``*_ref``).

* ``dcnv3``: deformable convolution v3, channels last; without a mask the adaptive scan's sampler.
* ``selective_scan``, ``selective_scan_state``: the recurrence of Mamba and of DAMamba.
* ``deform_sample``: bilinear samples at free points; ``ms_deform_attn``: multi-scale deformable attention's core.
* ``causal_conv1d``, ``causal_conv1d_update``: the short convolution in front of a 1-D Mamba.

Compiled kernels (``csrc/``) run where they were built; ``backend=`` or ``OPENREC_OPS`` choose another way.

``available()`` tells which backends run them here; ``keep_freed_memory()`` speeds up work on CPU.
"""

from __future__ import annotations

from openrec.ops._load import available
from openrec.ops.causal_conv1d import causal_conv1d, causal_conv1d_ref, causal_conv1d_update
from openrec.ops.dcnv3 import dcnv3, dcnv3_ref
from openrec.ops.deform_sample import deform_sample, deform_sample_ref
from openrec.ops.memory import keep_freed_memory
from openrec.ops.ms_deform_attn import ms_deform_attn
from openrec.ops.selective_scan import (
    selective_scan,
    selective_scan_ref,
    selective_scan_state,
    selective_scan_state_ref,
)

__all__ = [
    "available",
    "causal_conv1d",
    "causal_conv1d_ref",
    "causal_conv1d_update",
    "dcnv3",
    "dcnv3_ref",
    "deform_sample",
    "deform_sample_ref",
    "keep_freed_memory",
    "ms_deform_attn",
    "selective_scan",
    "selective_scan_ref",
    "selective_scan_state",
    "selective_scan_state_ref",
]
