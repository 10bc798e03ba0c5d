"""The flat parameter space, and the interface of an arena, which stores the parameters.

The flat parameter space numbers the elements of all trainable parameters in `named_parameters()` order. Each tensor
starts at a multiple of 128. `arena.py` is for parameters that one process holds whole, `sharded.py` for parameters
sharded by FSDP.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.base import DTYPES
from ..philox import BLOCK_SIGNS

NOTHING_TO_TRAIN = "there is nothing to train: no parameter has requires_grad=True"


@dataclass(frozen=True)
class Slot:
    """Place of one parameter tensor in the flat parameter space."""

    name: str
    offset: int
    numel: int
    shape: torch.Size


@dataclass
class Segment:
    """Elements start .. stop of the flat parameter space, which hold the parameters of one group."""

    start: int
    stop: int
    slots: list[Slot]


class Arena(ABC):
    """Stores the trainable parameters and maps them to elements of the flat parameter space.

    State of the parameters' size (a second copy, a momentum) is one flat tensor in the arena's layout. It has the
    elements that this process holds: for a `ParameterArena` the whole flat parameter space.
    """

    slots: tuple[Slot, ...]
    dtype: torch.dtype
    device: torch.device
    num_parameters: int
    """Number of trainable parameters, without the padding."""
    parameters: list[Tensor]
    """The parameters of the arena in flat order. Parameters that share a slot follow each other."""
    _slot_of: dict[Tensor, Slot]

    @property
    @abstractmethod
    def flat(self) -> Tensor:
        """The parameters in the layout of state, with 0 as padding."""

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The memory of the parameters: contiguous tensors without gradients."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of elements of the flat parameter space, padding included."""

    @abstractmethod
    def zeros(self, dtype: torch.dtype) -> Tensor:
        """New state of `dtype`, filled with 0."""

    @abstractmethod
    def check(self) -> None:
        """Raises RuntimeError if a parameter no longer lies where it was, as after `model.to(...)`."""

    @abstractmethod
    def versions(self) -> list[Hashable]:
        """A value for each parameter that changes whenever the parameter is written."""

    @abstractmethod
    def each(self, segment: Segment, kernel: Callable[..., Any], *state: Tensor) -> None:
        """Calls kernel(x, *parts of state, offset=...) for pieces x of the segment, which it may change in place.

        Together the pieces are the segment's parameters. Each begins at element `offset`, a multiple of 128.
        """

    @abstractmethod
    def each_of(self, state: Tensor, segment: Segment, kernel: Callable[..., Any], *more: Tensor) -> None:
        """Calls kernel(x, *parts of more, offset=...) for pieces x of the segment's state, as `each` does."""

    @abstractmethod
    def magnitudes(self, slots: Sequence[Slot], state: Tensor | None = None) -> list[float]:
        """The largest magnitude of each parameter, or of its elements in `state`, over all processes that hold shards.

        The value is NaN or inf if an element is.
        """

    @abstractmethod
    def largest(self, segment: Segment, state: Tensor) -> float:
        """The largest magnitude of the segment's state, over all processes that hold shards."""

    @abstractmethod
    def take(self, slot: Slot, theta: Tensor) -> None:
        """Copies a parameter into the state theta, unless it already equals its elements there, cast to its dtype."""

    @abstractmethod
    def write(self, theta: Tensor) -> None:
        """Copies the state theta into the parameters, cast to their dtype."""

    @abstractmethod
    def clear_padding(self, state: Tensor | None = None) -> None:
        """Sets the padding between the parameters, or in `state`, to 0."""

    def _set_entries(self, entries: Sequence[tuple[Slot, Tensor]]) -> None:
        """Stores the parameters and their slots. Several parameters may share a slot."""
        self._slot_of = {p: slot for slot, p in entries}
        self.parameters = list(self._slot_of)
        self.num_parameters = sum(slot.numel for slot in self.slots)

    def slot_of(self, parameter: Tensor) -> Slot:
        """The slot of `parameter`. Raises KeyError if it does not belong to the arena."""
        if parameter not in self._slot_of:
            raise KeyError("this parameter is not in the arena")
        return self._slot_of[parameter]


def slots_of(named: Iterable[tuple[str, Tensor]]) -> tuple[tuple[Slot, ...], int]:
    """The slots of parameters in flat order, and the number of elements of the flat parameter space."""
    slots, offset = [], 0
    for name, p in named:
        slots.append(Slot(name, offset, p.numel(), p.shape))
        offset += -(-p.numel() // BLOCK_SIGNS) * BLOCK_SIGNS
    return tuple(slots), offset


def common_kind(named: Sequence[tuple[str, Tensor]]) -> tuple[torch.dtype, torch.device]:
    """The parameters' dtype and device. Raises ValueError if they differ, TypeError for a dtype without kernels."""
    first_name, first = named[0]
    if first.dtype not in DTYPES:
        raise TypeError(f"{first_name} has dtype {first.dtype}; zo_kernels trains {', '.join(map(str, DTYPES))}")
    for name, p in named:
        if p.dtype != first.dtype or p.device != first.device:
            raise ValueError(
                f"all trainable parameters must share one dtype and device, but {first_name} is {first.dtype} on "
                f"{first.device} and {name} is {p.dtype} on {p.device}"
            )
    return first.dtype, first.device


def refuse_overlap(memory: Iterable[tuple[int, int, str]]) -> None:
    """Raises ValueError if two parameters, given as (start address, end address, name), overlap."""
    for (_, end, name), (start, _, other) in pairwise(sorted(memory)):
        if start < end:
            raise ValueError(f"parameters {name} and {other} overlap in memory: share a whole parameter or none of it")


def named_parameters(params: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Parameters with their names, or with their positions if they have no names."""
    if isinstance(params, nn.Module):
        return list(params.named_parameters())
    return [p if isinstance(p, tuple) else (f"parameter {i}", p) for i, p in enumerate(params)]


def is_dtensor(x: object) -> bool:
    """Whether x is a DTensor.

    Does not import torch.distributed.tensor, whose import takes half as long as that of torch itself.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)
