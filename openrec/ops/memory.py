"""Memory behaviour of the process on CPU."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor instead of giving it back to the system.

    A training step on CPU frees and asks again for the same tensors of some megabytes; each time the system has to
    clear new pages, which took a third of a step's time where it was measured. Call it once at the start of a
    process that trains or reads on CPU; the process then keeps its peak of memory until it ends.

    Returns:
        ``True`` where it took effect (Linux with glibc).
    """
    if platform.system() != "Linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_THRESHOLD, 1 << 30), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 1 << 26))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) for name, value in settings)
