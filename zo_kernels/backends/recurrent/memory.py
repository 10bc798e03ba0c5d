"""How much memory a population forward may take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base import RecurrentWeights

CPU_BYTES = 256 << 20
"""For the members and states of one call on a CPU."""

_GPU_BYTES, _GPU_COPIES, _SHARE = 384 << 20, 6, 0.6
"""On a GPU: so many bytes, or so many copies of the parameters if that is more, up to a share of the free memory.

Enough to fill the device, more would take memory and no less time; the rest of the share is for what is not counted.
"""

_LOGITS = 256 << 20
"""Of the free memory, what tiles of logits and their like take."""


def population_bytes(weights: RecurrentWeights) -> int:
    """Bytes that the members and states of a population may take on the parameters' device, besides logits."""
    return members_bytes(weights.tensors, CPU_BYTES)


def members_bytes(parameters: Sequence[Tensor], cpu_bytes: int) -> int:
    """As `population_bytes`, for a model with these parameters; cpu_bytes: the answer on a CPU."""
    device = parameters[0].device
    if device.type != "cuda":
        return cpu_bytes
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    size = 8 if parameters[0].dtype == torch.float64 else 4
    wanted = max(_GPU_BYTES, _GPU_COPIES * size * sum(x.numel() for x in parameters))
    return max(min(int(free * _SHARE) - _LOGITS, wanted), 0)
