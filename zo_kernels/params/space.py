"""The trainable parameters of an optimizer, where they lie in the flat parameter space and which process holds them."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .batch import Batch, Member, State
from .grid import largest_magnitude
from .layout import (
    NOTHING_TO_TRAIN,
    Slot,
    check_trainable,
    group_by_memory,
    local_part,
    named_parameters,
    next_offset,
    slots_of,
)
from .shards import Shards

Named = Sequence[tuple[str, Tensor]]

_BLOCK = 1 << 20
"""Elements that `count_below` looks at together."""


class ParameterSpace:
    """Numbers the elements of parameters. The parameters stay where they are, in their own storage.

    groups: (name, parameter) pairs of each parameter group, in flat order. First come the numbers of the parameters
        that are trainable now, then those of the frozen ones, so that thawing a parameter changes no other's numbers.
        Parameters may have any of the kernels' dtypes, lie on several devices and have any strides; elements are
        numbered in row-major order. A parameter that occurs twice, or has exactly the memory of another, has one slot.
    padding: row of a parameter that is not trained (`padding_idx` of an embedding).

    Some parameters may be DTensors, as FSDP2's `fully_shard` makes them: see `zo_kernels.params.shards`.

    Raises ValueError if there is nothing to train, if parameters overlap partly in memory, are on the meta device or
    are placed on a mesh in an unsupported way. Raises TypeError for a dtype without kernels.
    """

    groups: list[list[Slot]]
    """The slots of each parameter group."""
    shards: Shards | None
    """The processes that hold shards of the parameters; None if no parameter is a DTensor."""

    def __init__(self, groups: Sequence[Named], padding: Mapping[Tensor, int] | None = None) -> None:
        self.groups = []
        self.shards = None
        self._padding: dict[Tensor, int] = {}
        self._slot_of: dict[Tensor, Slot] = {}
        self._tensors: dict[Slot, list[Tensor]] = {}
        self._members: dict[Slot, Member] = {}
        self._versions: dict[Slot, Hashable] = {}
        self.add_groups(groups, padding or {})
        if not any(p.requires_grad for p in self._slot_of):
            raise ValueError(NOTHING_TO_TRAIN)
        self._make_members()
        self._age = next(_ages)
        _spaces.add(self)

    @classmethod
    def of(cls, params: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> ParameterSpace:
        """The space of one group: of a module, or of parameters with or without names."""
        return cls([named_parameters(params)])

    def add_groups(self, groups: Sequence[Named], padding: Mapping[Tensor, int]) -> None:
        """Appends parameter groups. Their elements get the next free numbers. Raises as the constructor does."""
        numbered = [[(name, p) for name, p in group if p not in self._slot_of] for group in groups]
        trainable = [(k, *pair) for k, group in enumerate(numbered) for pair in group if pair[1].requires_grad]
        frozen = [(k, *pair) for k, group in enumerate(numbered) for pair in group if not pair[1].requires_grad]
        found = group_by_memory([(name, p) for _, name, p in trainable])
        found += [(name, [p]) for name, p in dict((p, (name, p)) for _, name, p in frozen).values()]
        group_of = {p: k for k, _, p in reversed([*trainable, *frozen])}
        offset = max((next_offset(slot) for slot in self._tensors), default=0)
        first = len(self.groups)
        self._padding.update(padding)
        self.groups += [[] for _ in groups]
        for slot, (_, tensors) in zip(slots_of([(n, t[0]) for n, t in found], offset), found, strict=True):
            self._tensors[slot] = tensors
            self._slot_of.update(dict.fromkeys(tensors, slot))
            self.groups[first + min(group_of[p] for p in tensors)].append(slot)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots of all parameters, frozen ones included."""
        return tuple(self._tensors)

    @property
    def trained(self) -> list[Slot]:
        """The slots of the parameters that were trainable at the last `refresh`."""
        return list(self._members)

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters. Those that share a slot follow each other."""
        return [p for tensors in self._tensors.values() for p in tensors]

    @property
    def num_parameters(self) -> int:
        """Number of trainable elements, of all processes."""
        return sum(slot.numel for slot in self._members)

    def slot_of(self, parameter: Tensor) -> Slot:
        """The slot of a parameter. Raises KeyError if it is not in the space."""
        if parameter not in self._slot_of:
            raise KeyError("this parameter is not in the space")
        return self._slot_of[parameter]

    def dtype(self, slot: Slot) -> torch.dtype:
        """The dtype of a parameter."""
        return self._tensors[slot][0].dtype

    def memory(self, slot: Slot) -> Tensor:
        """The elements of a parameter that this process holds, in the parameter's memory."""
        return local_part(self._tensors[slot][0]).detach()

    def memory_of(self, parameter: Tensor) -> Tensor:
        """As `memory`, of the slot of a parameter."""
        return self.memory(self.slot_of(parameter))

    def start(self, slot: Slot) -> int:
        """Number, within a trained parameter, of the first element that this process holds."""
        return self._members[slot].start

    def batches(self, slots: Iterable[Slot]) -> list[Batch]:
        """The given trained parameters, in a batch for each dtype and device."""
        found: dict[Hashable, list[Member]] = {}
        for slot in slots:
            memory = local_part(self._tensors[slot][0])
            found.setdefault((memory.dtype, memory.device), []).append(self._members[slot])
        return [Batch(members) for members in found.values()]

    def refresh(self) -> tuple[set[Slot], bool]:
        """Looks at the parameters before a step.

        Returns the trained slots that were written, moved, thawed or converted since `note_versions` (all of them at
        first), and whether the set of trained parameters, their dtypes or devices are others than at the last call.

        Raises as the constructor does, and RuntimeError if FSDP's state does not allow a step.
        """
        kinds = self._look()
        is_other = kinds != self._kinds
        if is_other:
            self._make_members()
        if self.shards is not None:
            self.shards.check()
        return {s for s, m in self._members.items() if self._versions.get(s) != m.version()}, is_other

    def note_versions(self, *, written: bool) -> None:
        """Remembers the parameters as they are now. written: they were, which autograd must hear of."""
        if written:
            trained = [p for member in self._members.values() for p in member.tensors]
            torch.autograd.graph.increment_version(trained)
        self._versions = {slot: member.version() for slot, member in self._members.items()}

    def forget_versions(self) -> None:
        """Makes the next `refresh` report all parameters."""
        self._versions = {}

    def magnitudes(self, slots: Sequence[Slot], state: State | None = None) -> list[float]:
        """The largest magnitude of each parameter, or of its state, over all processes that hold shards.

        The value is NaN or inf if an element is.
        """
        found = [largest_magnitude(self.memory(slot) if state is None else state[slot]) for slot in slots]
        return found if self.shards is None else self.shards.largest(found)

    def count_below(self, slot: Slot, magnitude: float) -> int:
        """How many elements of a parameter are smaller than this, over all processes that hold shards."""
        blocks = self.memory(slot).reshape(-1).split(_BLOCK)  # comparing makes copies
        count = sum(int((block.abs() < magnitude).sum()) for block in blocks)
        return count if self.shards is None else self.shards.sum(count)

    def renumber(self, offsets: Mapping[Tensor, int]) -> None:
        """Gives parameters the offsets of a saved state, and new slots with them."""
        moved = {}
        for slot, tensors in self._tensors.items():
            offset = next((offsets[p] for p in tensors if p in offsets), slot.offset)
            moved[slot] = Slot(slot.name, offset, slot.numel, slot.shape)
        self._tensors = {moved[slot]: tensors for slot, tensors in self._tensors.items()}
        self._slot_of = {p: slot for slot, tensors in self._tensors.items() for p in tensors}
        self.groups = [[moved[slot] for slot in group] for group in self.groups]
        self._make_members()
        self.forget_versions()

    @contextmanager
    def numbering(self, theta: Callable[[Slot], Tensor] | None = None) -> Iterator[None]:
        """Context in which `flat_offsets` and `find_places` use this space, should there be several.

        theta: the values of a trained parameter, if they are not those in its memory.
        """
        token = _current.set(self)
        theta_token = _theta.set(theta)
        try:
            yield
        finally:
            _theta.reset(theta_token)
            _current.reset(token)

    def _make_members(self) -> None:
        trained = {s: t for s, t in self._tensors.items() if any(p.requires_grad for p in t)}
        for slot, tensors in trained.items():
            check_trainable(slot.name, tensors[0])
        named = [(slot.name, tensors[0]) for slot, tensors in trained.items()]
        self.shards = Shards.of(named)
        starts = [0] * len(named) if self.shards is None else [start for start, _ in self.shards.spans]
        self._members = {}
        for (slot, tensors), start in zip(trained.items(), starts, strict=True):
            self._members[slot] = Member(slot, tensors, start, ())
            self._members[slot].spans = self._spans(slot)
        self._kinds = self._look()

    def _look(self) -> dict[Slot, Hashable]:
        """The parameters that are trainable now, and what the batches depend on."""
        found: dict[Slot, Hashable] = {}
        for slot, tensors in self._tensors.items():
            if tensors[0].requires_grad or any(p.requires_grad for p in tensors[1:]):
                memory = local_part(tensors[0])
                found[slot] = memory.dtype, memory.device, memory.shape
        return found

    def _spans(self, slot: Slot) -> tuple[tuple[int, int], ...]:
        """The elements to train among those that this process holds, around the padding row."""
        p = self._tensors[slot][0]
        numel, row = local_part(p).numel(), self._padding.get(p)
        if row is None:
            return ((0, numel),)
        width = prod(slot.shape[1:])
        first = self._members[slot].start if slot in self._members else 0
        start = min(max(row * width - first, 0), numel)
        stop = min(max((row + 1) * width - first, 0), numel)
        return tuple(span for span in ((0, start), (stop, numel)) if span[0] < span[1])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "shards": None, "_versions": {}}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        # Keyed by tensors, which a copy may not have filled yet: rebuilt when the copy is complete.
        self._kinds = {}
        self._age = next(_ages)
        _spaces.add(self)


_ages = itertools.count()
_spaces: weakref.WeakSet[ParameterSpace] = weakref.WeakSet()
_current: ContextVar[ParameterSpace | None] = ContextVar("zo_kernels_space", default=None)


_theta: ContextVar[Callable[[Slot], Tensor] | None] = ContextVar("zo_kernels_theta", default=None)


class Place(NamedTuple):
    """Where a parameter is perturbed. offset: number of its first element. theta: its values, in its shape.

    spans: the elements that are perturbed, as (start, stop) in row-major order: all but a padding row.
    """

    offset: int
    theta: Tensor
    spans: tuple[tuple[int, int], ...]


def find_places(module: nn.Module) -> dict[Tensor, Place]:
    """The parameters of a module that are perturbed, and where: {parameter: place}.

    Their offsets are those of `flat_offsets`, whose errors it raises. theta may have another dtype than the parameter:
    it is the shadow copy, if an optimizer that has one is taking a step.
    """
    offsets, current, source = flat_offsets(module), _current.get(), _theta.get()
    newest_first = sorted(_spaces, key=lambda space: -space._age)
    space = current or next((space for space in newest_first if not offsets.keys().isdisjoint(space._slot_of)), None)
    places = {}
    for p, offset in offsets.items():
        slot = None if space is None else space._slot_of[p]
        member = None if space is None or slot is None else space._members.get(slot)
        theta = p.detach() if slot is None or source is None else source(slot).view(p.shape)
        places[p] = Place(offset, theta, ((0, p.numel()),) if member is None else member.spans)
    return places


def flat_offsets(module: nn.Module) -> dict[Tensor, int]:
    """Offsets of a module's trainable parameters in the flat parameter space: {parameter: offset}.

    If an optimizer was built on some of the parameters, the result has their offsets in its space, and the parameters
    outside it are left out, since the optimizer does not train them. The last optimizer built counts, and during a step
    the one that takes it. Without an optimizer the offsets are those that `ParameterSpace.of(module)` would give.
    Frozen parameters are left out. Raises ValueError if each of several optimizers has parameters of its own.
    """
    parameters: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
    current = _current.get()
    spaces = [current] if current is not None else sorted(_spaces, key=lambda space: -space._age)
    found = [{p: space._slot_of[p].offset for p in parameters if p in space._slot_of} for space in spaces]
    found = [offsets for offsets in found if offsets]
    if any(not other.keys() <= found[0].keys() for other in found):
        raise ValueError("the model's parameters belong to several optimizers: use one optimizer for all of them")
    if found:
        return found[0]
    if not parameters:
        return {}
    named = group_by_memory([(name, p) for name, p in module.named_parameters() if p.requires_grad])
    slots = slots_of([(name, tensors[0]) for name, tensors in named])
    return {p: slot.offset for slot, (_, tensors) in zip(slots, named, strict=True) for p in tensors}
