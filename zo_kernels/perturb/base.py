"""Where theta is while losses are taken around it: the interface of the two ways to move it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..params.layout import Arena, Segment, Slot


@dataclass
class GroupUpdate:
    """theta = decay * theta + sum_i coeffs[i] * p(seeds[i]) for one segment; coeffs float64 [n]."""

    coeffs: Tensor
    decay: float


@dataclass
class DenseUpdate:
    """theta = decay * theta - lr * direction for one segment."""

    lr: float
    decay: float

    def __call__(self, theta: Tensor, direction: Tensor, *, offset: int) -> None:
        theta.mul_(self.decay).sub_(direction, alpha=self.lr)


Displacement = tuple[int, Sequence[float]]
"""A probe's seed, and how much of it each segment is moved by."""


class Perturbation(ABC):
    """Where theta is, and how it moves. `move` to as many points as wanted, then `update` or `leave`."""

    dtype: torch.dtype
    """Of theta."""

    def __init__(self, arena: Arena, segments: Sequence[Segment], distribution: str) -> None:
        self.arena = arena
        self.dtype = arena.dtype
        self.segments = list(segments)
        self.distribution = distribution
        self._versions: list[Hashable] | None = None

    @property
    @abstractmethod
    def theta(self) -> Tensor:
        """What theta is while the parameters are not moved, as one flat tensor of the arena's layout."""

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The memory that holds theta while the parameters are not moved: contiguous tensors."""

    @abstractmethod
    def begin(self, eps: Sequence[float], probes_at_once: int = 1) -> list[float]:
        """Starts a step: takes in parameters changed from outside, checks them, and returns the eps to be used.

        probes_at_once: how many displacements by eps a point of this step may have.
        """

    @abstractmethod
    def move(self, *to: Displacement) -> None:
        """Makes the parameters theta plus all of the displacements."""

    @abstractmethod
    def leave(self) -> None:
        """Makes the parameters theta again, bit for bit. Does nothing if they are."""

    @abstractmethod
    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        """Changes theta and makes the parameters theta. Raises GridRangeError, having changed nothing.

        Its caller defers interrupts: the update must happen as a whole, and so must what is noted of it.
        """

    @abstractmethod
    def update_densely(self, direction: Tensor, updates: Sequence[DenseUpdate]) -> None:
        """As `update`, along a direction written out, state of the arena; it may be overwritten."""

    def _apply(self, alpha: float, seed: int) -> Callable[..., Any]:
        """The kernel that adds alpha p(seed)."""
        return partial(ops.apply_probe_, alpha=alpha, seed=seed, distribution=self.distribution)

    def forget_versions(self) -> None:
        """Makes the next step take all parameters in anew."""
        self._versions = None

    def _changed_slots(self) -> set[Slot]:
        """Slots whose parameters were written from outside since the last step (all, before the first)."""
        self.arena.check()
        if self._versions is None:
            return set(self.arena.slots)
        versions = zip(self.arena.parameters, self.arena.versions(), self._versions, strict=True)
        return {self.arena.slot_of(p) for p, now, known in versions if now != known}

    def _note_versions(self, *, written: bool) -> None:
        if written:  # kernels write to memory: autograd must hear of it
            torch.autograd.graph.increment_version(self.arena.parameters)
        self._versions = self.arena.versions()


def require_finite(slots: Sequence[Slot], magnitudes: Sequence[float]) -> None:
    """Raises ValueError, naming the parameter, if a magnitude is not finite."""
    for slot, magnitude in zip(slots, magnitudes, strict=True):
        if not magnitude < float("inf"):
            raise ValueError(f"parameter {slot.name} holds a NaN or infinite value")
