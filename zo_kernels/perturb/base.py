"""The interface of `Perturbation`, which moves the parameters around theta while losses are taken."""

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
"""(seed of a probe, alpha of each segment): a displacement by alpha * p(seed)."""


class Perturbation(ABC):
    """Keeps theta, moves the parameters around it and updates it.

    A step is `begin`, any number of calls of `move`, then `update` or `leave`.
    """

    dtype: torch.dtype
    """Dtype of theta."""

    def __init__(self, arena: Arena, segments: Sequence[Segment], distribution: str) -> None:
        self.arena = arena
        self.dtype = arena.dtype
        self.segments = list(segments)
        self.distribution = distribution
        self._versions: list[Hashable] | None = None

    @property
    @abstractmethod
    def theta(self) -> Tensor:
        """theta as one flat tensor in the arena's layout. Valid only while the parameters are not moved."""

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The contiguous tensors that hold theta while the parameters are not moved."""

    @abstractmethod
    def begin(self, eps: Sequence[float], probes_at_once: int = 1) -> list[float]:
        """Starts a step and returns the eps to use for each segment, which may be rounded.

        Reads parameters that were changed from outside, and checks them. Raises ValueError if one is NaN or infinite,
        and GridRangeError if one or its perturbation does not fit the grid.

        eps: requested eps of each segment. probes_at_once: the most displacements that a `move` of this step will have.
        """

    @abstractmethod
    def move(self, *to: Displacement) -> None:
        """Sets the parameters to theta plus all of the displacements."""

    @abstractmethod
    def leave(self) -> None:
        """Sets the parameters back to theta, bit for bit. Does nothing if they were not moved."""

    @abstractmethod
    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        """Updates theta and sets the parameters to it. The caller defers interrupts (`deferred_interrupts`).

        Raises GridRangeError, without changing theta, if theta could leave the grid's range.
        """

    @abstractmethod
    def update_densely(self, direction: Tensor, updates: Sequence[DenseUpdate]) -> None:
        """Like `update`, along a dense direction: state of the arena, which may be overwritten."""

    def _apply(self, alpha: float, seed: int) -> Callable[..., Any]:
        """A kernel for `Arena.each` that adds alpha p(seed)."""
        return partial(ops.apply_probe_, alpha=alpha, seed=seed, distribution=self.distribution)

    def forget_versions(self) -> None:
        """Makes the next `begin` read all parameters again."""
        self._versions = None

    def _changed_slots(self) -> set[Slot]:
        """Slots of the parameters written from outside since the last step; all slots before the first step."""
        self.arena.check()
        if self._versions is None:
            return set(self.arena.slots)
        versions = zip(self.arena.parameters, self.arena.versions(), self._versions, strict=True)
        return {self.arena.slot_of(p) for p, now, known in versions if now != known}

    def _note_versions(self, *, written: bool) -> None:
        if written:  # autograd does not see the kernels' writes
            torch.autograd.graph.increment_version(self.arena.parameters)
        self._versions = self.arena.versions()


def require_finite(slots: Sequence[Slot], magnitudes: Sequence[float]) -> None:
    """Raises ValueError, naming the parameter, if a magnitude is not finite."""
    for slot, magnitude in zip(slots, magnitudes, strict=True):
        if not magnitude < float("inf"):
            raise ValueError(f"parameter {slot.name} holds a NaN or infinite value")
