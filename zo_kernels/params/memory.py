"""How much memory a device has."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import torch


def device_memory(device: torch.device) -> int:
    """Bytes of a device, used or not: of a CPU, what the machine has or its cgroup allows. 2^63 if nothing says it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    found = [1 << 63]
    if device.type == "cpu":
        with suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        with suppress(OSError, ValueError):  # "max" is not a number
            found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(found)
