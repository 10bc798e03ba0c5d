"""The parameters of a space written out: one tensor of the flat parameter space, with 0 between the parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from zo_kernels.params import ParameterSpace, Slot
from zo_kernels.params.layout import next_offset


def flat_size(space: ParameterSpace) -> int:
    """Number of elements of the flat parameter space, padding included."""
    return max(next_offset(slot) for slot in space.slots)


def flat(space: ParameterSpace, state: Mapping[Slot, Tensor] | None = None) -> Tensor:
    """A copy of the trained parameters, or of their state: [flat_size]. They must have one dtype and device."""
    state = state or {slot: space.memory(slot) for slot in space.trained}
    first = state[space.trained[0]]
    theta = torch.zeros(flat_size(space), dtype=first.dtype, device=first.device)
    for slot in space.trained:
        theta[slot.offset : slot.offset + slot.numel] = state[slot].reshape(-1)
    return theta


@torch.no_grad()
def write_flat(space: ParameterSpace, theta: Tensor) -> None:
    """Writes the parameters, through themselves: autograd and the optimizer notice."""
    for slot in space.trained:
        parameter = next(p for p in space.parameters if space.slot_of(p) is slot)
        parameter.copy_(theta[slot.offset : slot.offset + slot.numel].view(slot.shape))


def clear_padding(space: ParameterSpace, theta: Tensor) -> None:
    """Sets what lies between the parameters to 0."""
    kept = torch.zeros_like(theta)
    for slot in space.trained:
        kept[slot.offset : slot.offset + slot.numel] = theta[slot.offset : slot.offset + slot.numel]
    theta.copy_(kept)
