"""Runs a kernel on the parameters of one dtype and device, in one call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends.pieces import Pieces
from ..philox import BLOCK_SIGNS
from .layout import Slot, is_dtensor, local_part

State = Mapping[Slot, Tensor]
"""A contiguous tensor for each parameter, with the shape of the part of it that this process holds."""


@dataclass(eq=False)
class Member:
    """A parameter of the space, and which of its elements this process trains.

    tensors: parameters that share one memory; the first stands for all.
    start: number, within the parameter, of the first element that this process holds.
    spans: (start, stop) of the trained elements among those that this process holds, in row-major order.
    """

    slot: Slot
    tensors: list[Tensor]
    start: int
    spans: tuple[tuple[int, int], ...]

    @property
    def memory(self) -> Tensor:
        """The elements that this process holds, in the parameter's memory. Looked up at every call: they may move."""
        return local_part(self.tensors[0]).detach()

    def version(self) -> Hashable:
        """A value that changes whenever the parameter is written or gets other memory."""
        memory = local_part(self.tensors[0])
        return memory.data_ptr(), memory._version, *(p._version for p in self.tensors)


class Batch:
    """Parameters of one dtype and device.

    Kernels take contiguous memory whose first element has a number that is a multiple of 128. Where a parameter is not
    contiguous (channels_last), or where the elements of a process begin elsewhere, a kernel works on a copy, which is
    written back.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self._parameters = [member.tensors[0] for member in members]
        self._has_dtensors = any(is_dtensor(p) for p in self._parameters)
        self._spare: dict[int, tuple[list[int], _Gathered]] = {}

    @property
    def slots(self) -> list[Slot]:
        """The parameters' slots."""
        return [member.slot for member in self.members]

    def run(self, kernel: Callable[..., Any], *states: State) -> None:
        """Calls kernel(parameters, *states), with `Pieces` of the elements to train. It may write all of them."""
        self._call(kernel, [None, *states])

    def run_on(self, kernel: Callable[..., Any], *states: State) -> None:
        """Calls kernel(*states), without the parameters themselves."""
        self._call(kernel, list(states))

    def release(self) -> None:
        """Forgets the memory of the last call: nothing is held between steps."""
        self._spare.clear()

    def _call(self, kernel: Callable[..., Any], sources: Sequence[State | None]) -> None:
        lists = [self._gather(number, source) for number, source in enumerate(sources)]
        if lists[0].pieces is None:  # nothing on this process
            return
        for gathered in lists:
            gathered.read()
        kernel(*(gathered.pieces for gathered in lists))
        for gathered in lists:
            gathered.write()

    def _gather(self, number: int, state: State | None) -> _Gathered:
        if state is None:
            memory = map(local_part, self._parameters) if self._has_dtensors else self._parameters
            addresses = list(map(Tensor.data_ptr, memory))
        else:
            addresses = [id(state), *(state[member.slot].data_ptr() for member in self.members)]
        known = self._spare.get(number)
        if known is not None and known[0] == addresses:
            return known[1]
        tensors = [m.memory if state is None else state[m.slot] for m in self.members]
        gathered = _Gathered(self.members, tensors)
        if gathered.is_cheap:
            self._spare[number] = addresses, gathered
        return gathered


class _Gathered:
    """The pieces of some tensors, and the copies among them."""

    def __init__(self, members: Sequence[Member], tensors: Sequence[Tensor]) -> None:
        pieces: list[Tensor] = []
        offsets: list[int] = []
        self._copies: list[tuple[Tensor, Tensor]] = []  # memory and its copy, in the order of reading
        self.is_cheap = True
        for member, x in zip(members, tensors, strict=True):
            if not x.is_contiguous():
                copy = torch.empty(x.shape, dtype=x.dtype, device=x.device)
                self._copies.append((x, copy))
                x, self.is_cheap = copy, False
            flat = x.view(-1)
            for start, stop in member.spans:
                number = member.slot.offset + member.start + start
                before = number % BLOCK_SIGNS
                if before and start < stop:  # the first block, up to where the next begins
                    block = flat.new_zeros(BLOCK_SIGNS)
                    middle = min(start + BLOCK_SIGNS - before, stop)
                    self._copies.append((flat[start:middle], block[before : before + middle - start]))
                    pieces.append(block)
                    offsets.append(number - before)
                    number, start = number + middle - start, middle
                if start < stop:
                    pieces.append(flat[start:stop])
                    offsets.append(number)
        self.pieces = Pieces(pieces, offsets) if pieces else None

    def read(self) -> None:
        for memory, copy in self._copies:
            copy.copy_(memory)

    def write(self) -> None:
        for memory, copy in reversed(self._copies):
            memory.copy_(copy)
