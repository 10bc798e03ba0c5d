"""Stores parameters sharded among processes: DTensors, as FSDP2's `fully_shard` makes them.

Each process perturbs and updates its own rows in place. A probe's value at an element depends only on the place of the
element in the whole parameter. So no process needs another's rows, and the parameters are bit for bit those of a model
that is not sharded. All processes of a shard group take losses at the same points, since FSDP gathers parameters in the
forward pass. The loss at a point is the mean over the group.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..philox import BLOCK_SIGNS
from .arena import ParameterArena
from .grid import largest_magnitude
from .layout import (
    NOTHING_TO_TRAIN,
    Arena,
    Segment,
    Slot,
    common_kind,
    is_dtensor,
    named_parameters,
    refuse_overlap,
    slots_of,
)
from .placement import local_part, placement_of


class _FSDPModule(Protocol):
    """The methods used of an FSDPModule. mypy does not know that it is an nn.Module too."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def reshard(self) -> None: ...


@dataclass(frozen=True)
class _Shard:
    """One parameter's elements on this process.

    They begin at element `start` of the flat parameter space and at element `home` of state. Both are equal modulo 128,
    as the kernels require.
    """

    slot: Slot
    parameter: Tensor
    start: int
    numel: int
    home: int

    @property
    def local(self) -> Tensor:
        """The elements, [numel]. They are looked up at every call, since FSDP may move them."""
        return local_part(self.parameter).view(-1)


class ShardedArena(Arena):
    """Trainable parameters of which some are DTensors. All of them stay in their memory.

    params: as for `ParameterArena`. Parameters that are not DTensors must be equal on all processes. A parameter that
        occurs twice gets one slot.

    The mesh may have one dimension along which parameters are sharded by rows (`Shard(0)`), and one along which they
    are replicated. Raises ValueError, naming the parameter, for any other placement, if two parameters share memory, or
    if a parameter is an unsharded copy made by FSDP, which training would not change. Raises the errors of
    `ParameterArena`, too.
    """

    shard_group: dist.ProcessGroup | None
    """The processes that together hold one copy of the parameters, including this one."""
    replica_group: dist.ProcessGroup | None
    """The processes that hold the same elements as this one. They may split the probes. None if there are no others."""

    def __init__(self, params: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        named, seen = [], set()
        for name, p in named_parameters(params):
            if p.requires_grad and p not in seen:
                named.append((name, p))
                seen.add(p)
        if not named:
            raise ValueError(NOTHING_TO_TRAIN)
        modules = resharded_modules(named)
        self.dtype, self.device = common_kind(named)
        self.slots, self._end = slots_of(named)
        place = placement_of(named)
        self.shard_group, self.replica_group = place.shard_group, place.replica_group
        self._message_device = torch.device(place.device_type)
        entries = [(slot, p) for slot, (_, p) in zip(self.slots, named, strict=True)]
        self._set_entries(entries)
        self._shards: dict[Slot, _Shard] = {}
        home = 0
        for (slot, p), (start, numel) in zip(entries, place.spans, strict=True):
            at = slot.offset + start
            self._shards[slot] = _Shard(slot, p, at, numel, home + at % BLOCK_SIGNS)
            home += -(-(at % BLOCK_SIGNS + numel) // BLOCK_SIGNS) * BLOCK_SIGNS
        self._length = home
        refuse_overlap(
            (x.data_ptr(), x.data_ptr() + x.numel() * x.element_size(), slot.name)
            for slot, x in zip(self.slots, self.tensors, strict=True)
            if x.numel()
        )
        ours = {id(p) for _, p in named}
        self._modules = [(weakref.ref(module), {id(p) for p in module.parameters()} & ours) for module in modules]

    @property
    def flat(self) -> Tensor:
        """A copy of this process's elements in the layout of state, with 0 as padding."""
        copied = self.zeros(self.dtype)
        for shard in self._shards.values():
            self._of(shard, copied).copy_(shard.local)
        return copied

    @property
    def tensors(self) -> list[Tensor]:
        return [shard.local for shard in self._shards.values()]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Start and number of this process's elements of each parameter, in the flat parameter space."""
        return [(shard.start, shard.numel) for shard in self._shards.values()]

    def __len__(self) -> int:
        return self._end

    def zeros(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros(self._length, dtype=dtype, device=self.device)

    def check(self) -> None:
        self._reshard()
        for shard in self._shards.values():
            local = local_part(shard.parameter)
            if (local.numel(), local.dtype, local.device) != (shard.numel, self.dtype, self.device):
                raise RuntimeError(
                    f"parameter {shard.slot.name} has changed since the optimizer was built: build the optimizer after "
                    "model.to(...) and fully_shard"
                )
        for reference, managed in self._modules:
            module = reference()
            if module is not None and not managed <= {id(p) for p in module.parameters()}:
                raise RuntimeError(
                    "FSDP holds unsharded parameters, as after a forward pass that raised, and would not see their "
                    "update: call reset_iter_state() of the root module, or build the model anew"
                )

    def versions(self) -> list[Hashable]:
        shards = self._shards.values()
        return [(s.parameter._version, s.local._version, s.local.data_ptr()) for s in shards]

    def each(self, segment: Segment, kernel: Callable[..., Any], *state: Tensor) -> None:
        self._reshard()
        for shard in map(self._shards.__getitem__, segment.slots):
            before, x = shard.start % BLOCK_SIGNS, shard.local
            head = min(BLOCK_SIGNS - before, shard.numel) if before else 0
            if head:  # kernels must begin at a multiple of 128
                block = x.new_zeros(BLOCK_SIGNS)
                ours = block[before : before + head]
                ours.copy_(x[:head])
                home = shard.home - before
                kernel(block, *(s[home : home + BLOCK_SIGNS] for s in state), offset=shard.start - before)
                x[:head].copy_(ours)
            if shard.numel > head:
                parts = (s[shard.home + head : shard.home + shard.numel] for s in state)
                kernel(x[head:], *parts, offset=shard.start + head)

    def each_of(self, state: Tensor, segment: Segment, kernel: Callable[..., Any], *more: Tensor) -> None:
        for shard in map(self._shards.__getitem__, segment.slots):
            before = shard.start % BLOCK_SIGNS
            parts = (s[shard.home - before : shard.home + shard.numel] for s in (state, *more))
            if shard.numel:
                kernel(*parts, offset=shard.start - before)

    def magnitudes(self, slots: Sequence[Slot], state: Tensor | None = None) -> list[float]:
        shards = [self._shards[slot] for slot in slots]
        found = [largest_magnitude(shard.local if state is None else self._of(shard, state)) for shard in shards]
        return self._largest_of_all(found)

    def largest(self, segment: Segment, state: Tensor) -> float:
        return max(self.magnitudes(segment.slots, state))

    def take(self, slot: Slot, theta: Tensor) -> None:
        shard = self._shards[slot]
        copied = self._of(shard, theta)
        if not torch.equal(copied.to(self.dtype), shard.local):
            copied.copy_(shard.local)

    def write(self, theta: Tensor) -> None:
        self._reshard()
        for shard in self._shards.values():
            shard.local.copy_(self._of(shard, theta))

    def clear_padding(self, state: Tensor | None = None) -> None:
        if state is None:  # the parameters have no padding between them
            return
        end = 0
        for shard in self._shards.values():
            state[end : shard.home].zero_()
            end = shard.home + shard.numel
        state[end:].zero_()

    def mean(self, losses: Tensor) -> Tensor:
        """The mean over the shard group: float64 on the CPU, the same bits on all processes."""
        if self.shard_group is None:
            return losses
        mine = losses.to(self._message_device, torch.float64)
        received = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.shard_group))]
        dist.all_gather(received, mine, group=self.shard_group)
        first, *others = (reply.cpu() for reply in received)
        apart = torch.zeros_like(first)
        for reply in others:
            apart += reply - first
        return first + apart / len(received)  # exact where all are equal

    def _largest_of_all(self, found: Sequence[float]) -> list[float]:
        if self.shard_group is None:
            return list(found)
        finite = [value if value < float("inf") else float("inf") for value in found]  # MAX may lose a NaN
        message = torch.tensor(finite, dtype=torch.float64, device=self._message_device)
        dist.all_reduce(message, dist.ReduceOp.MAX, group=self.shard_group)
        return message.tolist()

    def _reshard(self) -> None:
        """Frees the parameters that FSDP has gathered: after a change, forward passes would still use them."""
        for reference, _ in self._modules:
            module = reference()
            if module is not None:
                module.reshard()

    @staticmethod
    def _of(shard: _Shard, state: Tensor) -> Tensor:
        return state[shard.home : shard.home + shard.numel]


def arena_of(params: Iterable[tuple[str, Tensor]]) -> Arena:
    """A `ShardedArena` if a trainable parameter is a DTensor, else a `ParameterArena`.

    Raises the errors of these classes, and ValueError if FSDP shards only frozen parameters of a module that has
    trainable ones.
    """
    named = [(name, p) for name, p in named_parameters(params) if p.requires_grad]
    if any(is_dtensor(p) for _, p in named):
        return ShardedArena(named)
    if resharded_modules(named):  # processes would take different forwards, but FSDP needs all of them in each
        raise ValueError(
            f"FSDP shards the module of parameter {named[0][0]}, but no trainable parameter: shard one of them"
        )
    return ParameterArena(named)


def resharded_modules(named: Sequence[tuple[str, Tensor]]) -> list[_FSDPModule]:
    """Calls reshard() of the FSDP2 modules that have one of the parameters, and returns these modules.

    Raises ValueError if a parameter then no longer belongs to its module.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    # Looking at every object takes a tenth of a second or more. FSDP needs a process group, and classes that are
    # modules: parts of torch define others.
    if fsdp is None or not dist.is_initialized():
        return []
    if not any(issubclass(kind, nn.Module) for kind in _subclasses(fsdp.FSDPModule)):
        return []
    wanted = {p for _, p in named}
    # torch keeps no list of FSDP modules, so ask the garbage collector.
    modules = [x for x in gc.get_objects() if issubclass(type(x), fsdp.FSDPModule)]
    modules = [module for module in modules if not wanted.isdisjoint(module.parameters())]
    for module in modules:
        unsharded = set(module.parameters())
        module.reshard()
        unsharded.difference_update(module.parameters())
        for name, p in named:
            if p in unsharded:
                raise ValueError(
                    f"parameter {name} is what FSDP gathered for a forward pass: call reshard() of the model and its "
                    "FSDP submodules before model.parameters(), or build the optimizer before the first forward pass"
                )
    return modules


def _subclasses(kind: type) -> Iterator[type]:
    direct: list[type] = kind.__subclasses__()
    for subclass in direct:
        yield subclass
        yield from _subclasses(subclass)
