"""Trainable parameters as one flat tensor.

The flat parameter space numbers all parameters: trainable ones in `named_parameters()` order, each tensor starting at a
multiple of 128 (its offset), so that a probe's sign at any element follows from (seed, index) alone and a kernel can
walk the whole model in one launch. Elements between tensors are padding and stay 0.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from .backends.base import DTYPES
from .philox import BLOCK_SIGNS


@dataclass(frozen=True)
class Slot:
    """Where one parameter tensor lies in the flat parameter space."""

    name: str
    offset: int
    numel: int
    shape: torch.Size


class ParameterArena:
    """Moves the trainable parameters of a module into one flat tensor, of which they become views.

    params: a module, or parameters, or (name, parameter) pairs, in flat order. Frozen ones (requires_grad False) stay
    where they are. A parameter that occurs twice, or shares exactly the memory of another, gets one slot.

    The parameters' values do not change, but their memory does: build the arena after `model.to(...)`, and do not
    replace `parameter.data` afterwards. Raises ValueError if there is nothing to train, parameters differ in dtype or
    device or overlap partly in memory, and TypeError for a dtype the kernels do not know.
    """

    flat: Tensor
    """All parameters and the padding between them: [numel], dtype and device of the parameters."""
    slots: tuple[Slot, ...]

    def __init__(self, params: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        named = _distinct(_named(params))
        first_name, first = named[0][0], named[0][1][0]
        if first.dtype not in DTYPES:
            raise TypeError(f"{first_name} has dtype {first.dtype}; zo_kernels trains {', '.join(map(str, DTYPES))}")
        for name, (p, *_) in named:
            if p.dtype != first.dtype or p.device != first.device:
                raise ValueError(
                    f"all trainable parameters must share one dtype and device, but {first_name} is {first.dtype} on "
                    f"{first.device} and {name} is {p.dtype} on {p.device}"
                )
        self.slots, offset = _slots(named)
        self.flat = torch.zeros(offset, dtype=first.dtype, device=first.device)
        self._members: list[tuple[Slot, Tensor]] = []
        with torch.no_grad():
            for slot, (_, sharing) in zip(self.slots, named, strict=True):
                home = self.view(slot)
                home.copy_(sharing[0])
                for p in sharing:
                    p.data = home
                    self._members.append((slot, p))
        gaps = [
            torch.arange(s.offset + s.numel, -(-(s.offset + s.numel) // BLOCK_SIGNS) * BLOCK_SIGNS) for s in self.slots
        ]
        self._padding = torch.cat(gaps).to(self.flat.device)
        _arenas.add(self)

    def __len__(self) -> int:
        """Elements of the flat tensor, padding included."""
        return self.flat.numel()

    @property
    def num_parameters(self) -> int:
        """Trainable parameters, padding excluded."""
        return sum(slot.numel for slot in self.slots)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that live here, in flat order (those that share a slot follow each other)."""
        return [p for _, p in self._members]

    def view(self, slot: Slot) -> Tensor:
        """The parameter of `slot` as a view of the flat tensor."""
        return self.flat[slot.offset : slot.offset + slot.numel].view(slot.shape)

    def slot_of(self, parameter: Tensor) -> Slot:
        """Where `parameter` lies. Raises KeyError if it is not one of the arena's."""
        for slot, p in self._members:
            if p is parameter:
                return slot
        raise KeyError("this parameter is not in the arena")

    def holds(self, parameter: Tensor) -> bool:
        """Whether `parameter` is one of the arena's and still lies in it."""
        base, size = self.flat.data_ptr(), self.flat.element_size()
        return any(p is parameter and p.data_ptr() == base + slot.offset * size for slot, p in self._members)

    def check(self) -> None:
        """Raises RuntimeError if a parameter no longer lies in the arena, as after `model.to(...)`."""
        base, size = self.flat.data_ptr(), self.flat.element_size()
        for slot, p in self._members:
            if p.dtype != self.flat.dtype or (slot.numel and p.data_ptr() != base + slot.offset * size):
                raise RuntimeError(
                    f"parameter {slot.name} has moved since the optimizer was built: build the optimizer after "
                    "model.to(...), .half() and the like, and do not assign to parameter.data"
                )

    def clear_padding(self, flat: Tensor | None = None) -> None:
        """Sets the padding of the flat tensor (or of another of its layout) back to 0."""
        (self.flat if flat is None else flat).index_fill_(0, self._padding, 0)


_arenas: weakref.WeakSet[ParameterArena] = weakref.WeakSet()


def flat_offsets(module: nn.Module) -> dict[Tensor, int]:
    """Where a module's trainable parameters begin in the flat parameter space: {parameter: offset}.

    Those that live in a `ParameterArena` (as after an optimizer was built) have their offset there, even if they were
    frozen since, and then parameters outside of it have none: the optimizer does not train them. Without an arena the
    offsets are those that `ParameterArena(module)` would give. Raises ValueError if the parameters live in several
    arenas.
    """
    parameters = list(module.parameters())
    homes = [arena for arena in _arenas if any(arena.holds(p) for p in parameters)]
    if len(homes) > 1:
        raise ValueError("the model's parameters are shared out among several optimizers: use one for all of them")
    if homes:
        return {p: homes[0].slot_of(p).offset for p in parameters if homes[0].holds(p)}
    if not any(p.requires_grad for p in parameters):
        return {}
    named = _distinct(_named(module))
    return {p: slot.offset for slot, (_, sharing) in zip(_slots(named)[0], named, strict=True) for p in sharing}


def _slots(named: list[tuple[str, list[Tensor]]]) -> tuple[tuple[Slot, ...], int]:
    """Slots of parameters in flat order, and where the space ends."""
    slots, offset = [], 0
    for name, (p, *_) in named:
        slots.append(Slot(name, offset, p.numel(), p.shape))
        offset += -(-p.numel() // BLOCK_SIGNS) * BLOCK_SIGNS
    return tuple(slots), offset


def _named(params: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    if isinstance(params, nn.Module):
        return list(params.named_parameters())
    listed = list(params)
    return [p if isinstance(p, tuple) else (f"parameter {i}", p) for i, p in enumerate(listed)]


def _distinct(named: list[tuple[str, Tensor]]) -> list[tuple[str, list[Tensor]]]:
    """Trainable parameters by memory, in order; each with all the tensors that share exactly that memory."""
    found: dict[tuple[int, torch.Size, tuple[int, ...]] | int, tuple[str, list[Tensor]]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, p in named:
        if not p.requires_grad:
            continue
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
        raise ValueError("there is nothing to train: no parameter requires a gradient")
    spans.sort()
    for (_, end, name), (start, _, other) in pairwise(spans):
        if start < end:
            raise ValueError(f"parameters {name} and {other} overlap in memory: share a whole parameter or none of it")
    return list(found.values())
