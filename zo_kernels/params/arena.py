"""Stores the trainable parameters of one process in one flat tensor.

The flat parameter space numbers the elements of all trainable parameters in `named_parameters()` order. Each tensor
starts at a multiple of 128, its offset. So a probe's value at an element depends only on (seed, index), and one kernel
launch covers the whole model. Elements between tensors are padding and stay 0.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..philox import BLOCK_SIGNS
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


class ParameterArena(Arena):
    """Moves the trainable parameters of a module into one flat tensor and makes them views of it.

    params: a module, parameters, or (name, parameter) pairs, in flat order. Frozen parameters (requires_grad False)
        stay where they are. A parameter that occurs twice, or has exactly the memory of another, gets one slot.

    The values of the parameters do not change, but their memory does: build the arena after `model.to(...)`, and do not
    replace `parameter.data` afterwards.

    Raises ValueError if there is nothing to train, or if parameters differ in dtype or device, overlap partly in memory
    or are DTensors (see `ShardedArena`). Raises TypeError for a dtype without kernels.
    """

    def __init__(self, params: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        named = _group_by_memory(named_parameters(params))
        self.dtype, self.device = common_kind([(name, p) for name, (p, *_) in named])
        self.slots, offset = slots_of([(name, p) for name, (p, *_) in named])
        self._flat = torch.zeros(offset, dtype=self.dtype, device=self.device)
        entries = []
        with torch.no_grad():
            for slot, (_, sharing) in zip(self.slots, named, strict=True):
                home = self.view(slot)
                home.copy_(sharing[0])
                for p in sharing:
                    p.data = home
                    entries.append((slot, p))
        self._set_entries(entries)
        gaps = [
            torch.arange(s.offset + s.numel, -(-(s.offset + s.numel) // BLOCK_SIGNS) * BLOCK_SIGNS) for s in self.slots
        ]
        self._padding = torch.cat(gaps).to(self._flat.device)
        _arenas.add(self)

    @property
    def flat(self) -> Tensor:
        """All parameters with the padding between them: [numel], in the dtype and on the device of the parameters."""
        return self._flat

    @property
    def tensors(self) -> list[Tensor]:
        return [self._flat]

    def __len__(self) -> int:
        return self._flat.numel()

    def view(self, slot: Slot) -> Tensor:
        """The parameter of `slot` as a view of the flat tensor."""
        return self._of(slot, self._flat).view(slot.shape)

    @staticmethod
    def _of(slot: Slot, flat: Tensor) -> Tensor:
        return flat[slot.offset : slot.offset + slot.numel]

    def offsets_of(self, parameters: Iterable[Tensor]) -> dict[Tensor, int]:
        """Offsets of the given parameters that belong to the arena and still lie in its memory."""
        base, size, found = self._flat.data_ptr(), self._flat.element_size(), {}
        for p in parameters:
            slot = self._slot_of.get(p)
            if slot is not None and p.data_ptr() == base + slot.offset * size:
                found[p] = slot.offset
        return found

    def check(self) -> None:
        base, size = self._flat.data_ptr(), self._flat.element_size()
        for p, slot in self._slot_of.items():
            if p.dtype != self._flat.dtype or (slot.numel and p.data_ptr() != base + slot.offset * size):
                raise RuntimeError(
                    f"parameter {slot.name} has moved since the optimizer was built: build the optimizer after "
                    "model.to(...), .half() and the like, and do not assign to parameter.data"
                )

    def zeros(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros_like(self._flat, dtype=dtype)

    def versions(self) -> list[Hashable]:
        return [p._version for p in self.parameters]

    def each(self, segment: Segment, kernel: Callable[..., Any], *state: Tensor) -> None:
        self.each_of(self._flat, segment, kernel, *state)

    def each_of(self, state: Tensor, segment: Segment, kernel: Callable[..., Any], *more: Tensor) -> None:
        kernel(*(x[segment.start : segment.stop] for x in (state, *more)), offset=segment.start)

    def magnitudes(self, slots: Sequence[Slot], state: Tensor | None = None) -> list[float]:
        return [largest_magnitude(self._of(slot, self._flat if state is None else state)) for slot in slots]

    def largest(self, segment: Segment, state: Tensor) -> float:
        return largest_magnitude(state[segment.start : segment.stop])

    def take(self, slot: Slot, theta: Tensor) -> None:
        copied, parameter = self._of(slot, theta), self._of(slot, self._flat)
        if not torch.equal(copied.to(self.dtype), parameter):
            copied.copy_(parameter)

    def write(self, theta: Tensor) -> None:
        self._flat.copy_(theta)

    def clear_padding(self, state: Tensor | None = None) -> None:
        (self._flat if state is None else state).index_fill_(0, self._padding, 0)


_arenas: weakref.WeakSet[ParameterArena] = weakref.WeakSet()


def flat_offsets(module: nn.Module) -> dict[Tensor, int]:
    """Offsets of a module's trainable parameters in the flat parameter space: {parameter: offset}.

    If some of the parameters live in a `ParameterArena`, as after an optimizer was built, the result has the offsets in
    that arena, also of parameters frozen since. Parameters outside the arena are left out, since the optimizer does not
    train them. Without an arena the offsets are those that `ParameterArena(module)` would give. Raises ValueError if
    the parameters live in several arenas.
    """
    parameters = list(module.parameters())
    found = [offsets for arena in _arenas if (offsets := arena.offsets_of(parameters))]
    if len(found) > 1:
        raise ValueError("the model's parameters belong to several optimizers: use one optimizer for all of them")
    if found:
        return found[0]
    if not any(p.requires_grad for p in parameters):
        return {}
    named = _group_by_memory(named_parameters(module))
    slots, _ = slots_of([(name, p) for name, (p, *_) in named])
    return {p: slot.offset for slot, (_, sharing) in zip(slots, named, strict=True) for p in sharing}


def _group_by_memory(named: list[tuple[str, Tensor]]) -> list[tuple[str, list[Tensor]]]:
    """Groups the trainable parameters, in order, with the tensors that have exactly the same memory."""
    found: dict[tuple[int, torch.Size, tuple[int, ...]] | int, tuple[str, list[Tensor]]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, p in named:
        if not p.requires_grad:
            continue
        if is_dtensor(p):
            raise ValueError(
                f"parameter {name} is a DTensor: use zo_kernels.params.ShardedArena and closures, not populations"
            )
        key = (p.data_ptr(), p.shape, p.stride()) if p.numel() else id(p)
        if key in found:
            if not any(p is known for known in found[key][1]):
                found[key][1].append(p)
            continue
        found[key] = (name, [p])
        if p.numel():
            extent = 1 + sum((n - 1) * s for n, s in zip(p.shape, p.stride(), strict=True))
            spans.append((p.data_ptr(), p.data_ptr() + extent * p.element_size(), name))
    if not found:
        raise ValueError(NOTHING_TO_TRAIN)
    refuse_overlap(spans)
    return list(found.values())
