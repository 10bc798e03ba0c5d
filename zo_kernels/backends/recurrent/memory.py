"""How much memory the perturbed copies of a model and their states may take in a population forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base import RecurrentWeights

CPU_BYTES = 256 << 20
"""Bytes for the members and states of one call on a CPU."""

_GPU_BYTES, _GPU_COPIES, _SHARE = 384 << 20, 6, 0.6
"""On a GPU: this many bytes, or so many copies of the parameters if those are larger, up to a share of free memory.

That is enough to fill the device; more memory would save no time. The rest is left for what is not counted.
"""

_LOGITS = 256 << 20
"""Bytes of the free memory that are kept for tiles of logits and other intermediate results."""


def population_bytes(weights: RecurrentWeights) -> int:
    """Returns the bytes that the members and states of a population may take on the parameters' device.

    Logits are not among them.
    """
    return members_bytes(weights.tensors, CPU_BYTES)


def members_bytes(parameters: Sequence[Tensor], cpu_bytes: int) -> int:
    """As `population_bytes`, for a model with these parameters. On a CPU it returns cpu_bytes."""
    device = parameters[0].device
    if device.type != "cuda":
        return cpu_bytes
    size = 8 if parameters[0].dtype == torch.float64 else 4
    wanted = max(_GPU_BYTES, _GPU_COPIES * size * sum(x.numel() for x in parameters))
    return min(usable_bytes(device), wanted)


def free_bytes(device: torch.device) -> int:
    """Returns the bytes of a GPU that are free, or that torch has cached; on a CPU, `CPU_BYTES`."""
    if device.type != "cuda":
        return CPU_BYTES
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + cached


def usable_bytes(device: torch.device) -> int:
    """Returns those of them that members and states may take."""
    return max(int(free_bytes(device) * _SHARE) - _LOGITS, 0)


def total_bytes(device: torch.device) -> int:
    """Returns the bytes of a GPU's memory."""
    return torch.cuda.mem_get_info(device)[1]
