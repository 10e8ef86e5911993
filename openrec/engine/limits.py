"""What a machine and a call give to a run: time, memory, disk, fonts, bf16."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from openrec.errors import ConfigError, OpenRecError

NEEDS = ("memory_gb", "disk_gb", "font_families")
GB = 1e9  # bytes


class TimeLimit:
    """``Global.max_minutes``, counted from construction; None: no limit."""

    def __init__(self, minutes: float | None) -> None:
        if minutes is not None and minutes <= 0:
            raise ConfigError(f"Global.max_minutes: expected more than 0 minutes, got {minutes}.")
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    def over(self) -> bool:
        return self.end is not None and time.monotonic() >= self.end


def use_bf16(wanted: bool | str, device: torch.device) -> bool:
    """``Global.use_amp``; ``auto``: where the device computes bf16 itself. Emulated, it is slower than float32."""
    if wanted != "auto":
        return bool(wanted)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch has no public question for a CPU in all versions that the project supports.
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in asked)


def check_machine(needs: Mapping[str, Any] | None, directory: Path) -> None:
    """Compare ``Global.needs`` with free memory and with free disk space at ``directory``.

    Raises:
        ConfigError: an unknown entry.
        OpenRecError: too little; the message has both numbers and what to do.
    """
    needs = needs or {}
    for name, value in needs.items():
        if name not in NEEDS or isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"Global.needs: expected numbers for {', '.join(NEEDS)}; got {name}: {value!r}.")
    lacking = []
    memory, disk = free_memory(), shutil.disk_usage(directory).free / GB
    if memory is not None and memory < needs.get("memory_gb", 0):
        lacking.append(
            f"memory: {memory:.1f} GB are free, {needs['memory_gb']:g} GB are needed "
            f"({needs['memory_gb'] - memory:.1f} GB more): close other programs, or lower "
            "Train.loader.batch_size_per_card and num_workers"
        )
    if disk < needs.get("disk_gb", 0):
        lacking.append(
            f"disk: {disk:.2f} GB are free at {directory}, {needs['disk_gb']:g} GB are needed "
            f"({needs['disk_gb'] - disk:.2f} GB more): make room, or set another Global.output_dir"
        )
    _refuse(lacking)


def check_fonts(needs: Mapping[str, Any] | None, dataset: Any) -> None:
    """Compare ``Global.needs.font_families`` with what ``SyntheticWords``, the data set of ``Train``, draws with.

    Raises:
        OpenRecError: too few families; the message names packages.
    """
    least = (needs or {}).get("font_families", 0)
    renderer = getattr(dataset, "renderer", None)
    if renderer is None or len(renderer.fonts.groups) >= least:
        return
    found = len(renderer.fonts.groups)
    _refuse(
        [
            f"fonts: {found} families draw the charset in Train, {least:g} are needed ({least - found:g} more): "
            f"install {renderer.fonts.packages()}, or name directories in Train.dataset.fonts"
        ]
    )


def _refuse(lacking: list[str]) -> None:
    if lacking:
        lines = "\n".join(f"  {line}" for line in lacking)
        raise OpenRecError(
            f"this machine does not have what the config asks for (Global.needs):\n{lines}\n"
            "To try all the same: -o Global.needs=null"
        )


def free_memory() -> float | None:
    """Memory in GB that a process may still take, a container's limit included; None where no one tells."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024)
    except (OSError, StopIteration, ValueError):
        try:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (ValueError, OSError, AttributeError):
            return None
    try:
        group = Path("/sys/fs/cgroup")
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(cached.get("inactive_file", 0))
        found.append(int((group / "memory.max").read_text()) - used)
    except (OSError, ValueError):  # no such group, or "max": no limit
        pass
    return min(found) / GB
