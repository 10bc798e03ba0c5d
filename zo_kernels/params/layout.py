"""The flat parameter space, and what an arena is: where the parameters lie that have a place in it.

Its elements number all trainable parameters in `named_parameters()` order, each tensor starting at a multiple of 128.
`arena.py` has the parameters of one process, `sharded.py` those of which each process holds a part.
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

NOTHING_TO_TRAIN = "there is nothing to train: no parameter requires a gradient"


@dataclass(frozen=True)
class Slot:
    """Where one parameter tensor lies in the flat parameter space."""

    name: str
    offset: int
    numel: int
    shape: torch.Size


@dataclass
class Segment:
    """Elements start .. stop of the flat parameter space: the parameters of one group."""

    start: int
    stop: int
    slots: list[Slot]


class Arena(ABC):
    """Where the trainable parameters lie, and which elements of the flat parameter space they are.

    State of the parameters' size (a second copy, a momentum) is one flat tensor of the arena's layout, which holds what
    this process holds of them: for a `ParameterArena` the whole flat parameter space.
    """

    slots: tuple[Slot, ...]
    dtype: torch.dtype
    device: torch.device
    num_parameters: int
    """Trainable parameters, padding excluded."""
    parameters: list[Tensor]
    """The parameters that live here, in flat order (those that share a slot follow each other)."""
    _slot_of: dict[Tensor, Slot]

    @property
    @abstractmethod
    def flat(self) -> Tensor:
        """The parameters in the layout of state, padding 0."""

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The memory of the parameters: contiguous tensors without gradients."""

    @abstractmethod
    def __len__(self) -> int:
        """Elements of the flat parameter space, padding included."""

    @abstractmethod
    def zeros(self, dtype: torch.dtype) -> Tensor:
        """New state."""

    @abstractmethod
    def check(self) -> None:
        """Raises RuntimeError if a parameter no longer lies where it was, as after `model.to(...)`."""

    @abstractmethod
    def versions(self) -> list[Hashable]:
        """Of each parameter, what changes when it is written."""

    @abstractmethod
    def each(self, segment: Segment, kernel: Callable[..., Any], *state: Tensor) -> None:
        """kernel(x, *parts of state, offset=...) on pieces x of the segment's parameters, to be changed in place.

        The pieces make up the segment; each begins at element `offset`, a multiple of 128.
        """

    @abstractmethod
    def each_of(self, state: Tensor, segment: Segment, kernel: Callable[..., Any], *more: Tensor) -> None:
        """kernel(x, *parts of more, offset=...) on pieces x of state, as `each`."""

    @abstractmethod
    def magnitudes(self, slots: Sequence[Slot], state: Tensor | None = None) -> list[float]:
        """The largest of each parameter, or of what state has for it; over all processes that hold a part of it.

        NaN or inf if one of its elements is.
        """

    @abstractmethod
    def largest(self, segment: Segment, state: Tensor) -> float:
        """The largest magnitude of the segment's state, over all processes that hold a part of it."""

    @abstractmethod
    def take(self, slot: Slot, theta: Tensor) -> None:
        """Copies a parameter to state theta, unless it is the cast of what theta has."""

    @abstractmethod
    def write(self, theta: Tensor) -> None:
        """Makes the parameters those of state theta, cast."""

    @abstractmethod
    def clear_padding(self, state: Tensor | None = None) -> None:
        """Sets the padding between the parameters, or in state, back to 0."""

    def _set_entries(self, entries: Sequence[tuple[Slot, Tensor]]) -> None:
        """Takes note of the parameters, each with the slot that it lies in; several may share one."""
        self._slot_of = {p: slot for slot, p in entries}
        self.parameters = list(self._slot_of)
        self.num_parameters = sum(slot.numel for slot in self.slots)

    def slot_of(self, parameter: Tensor) -> Slot:
        """Where `parameter` lies. Raises KeyError if it is not one of the arena's."""
        if parameter not in self._slot_of:
            raise KeyError("this parameter is not in the arena")
        return self._slot_of[parameter]


def slots_of(named: Iterable[tuple[str, Tensor]]) -> tuple[tuple[Slot, ...], int]:
    """Slots of parameters in flat order, and where the space ends."""
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
    """Raises ValueError if some of the addresses start .. end of parameters, each with its name, overlap."""
    for (_, end, name), (start, _, other) in pairwise(sorted(memory)):
        if start < end:
            raise ValueError(f"parameters {name} and {other} overlap in memory: share a whole parameter or none of it")


def named_parameters(params: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Parameters with their names, or those of their places."""
    if isinstance(params, nn.Module):
        return list(params.named_parameters())
    return [p if isinstance(p, tuple) else (f"parameter {i}", p) for i, p in enumerate(params)]


def is_dtensor(x: object) -> bool:
    """Whether x is a DTensor, without importing what defines them: that costs half as much as torch itself."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)
