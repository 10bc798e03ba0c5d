"""Where theta is while losses are taken around it: the interface of the two ways to move it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..arena import ParameterArena, Slot


@dataclass
class Segment:
    """Elements start .. stop of the flat parameter space: the parameters of one group."""

    start: int
    stop: int
    slots: list[Slot]

    def of(self, flat: Tensor) -> Tensor:
        return flat[self.start : self.stop]


@dataclass
class GroupUpdate:
    """theta = decay * theta + sum_i coeffs[i] * p(seeds[i]) for one segment; coeffs float64 [n]."""

    coeffs: Tensor
    decay: float


@dataclass
class DenseUpdate:
    """theta = decay * theta - lr * direction for one segment; direction has its shape."""

    direction: Tensor
    lr: float
    decay: float


Displacement = tuple[int, Sequence[float]]
"""A probe's seed, and how much of it each segment is moved by."""


class Perturbation(ABC):
    """Where theta is, and how it moves. `move` to as many points as wanted, then `update` or `leave`."""

    def __init__(self, arena: ParameterArena, segments: Sequence[Segment], distribution: str) -> None:
        self.arena = arena
        self.segments = list(segments)
        self.distribution = distribution
        self._versions: list[int] | None = None

    @property
    @abstractmethod
    def theta(self) -> Tensor:
        """The flat tensor that is theta while the parameters are not moved."""

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
        """Changes theta and makes the parameters theta. Raises GridRangeError, having changed nothing."""

    @abstractmethod
    def update_densely(self, updates: Sequence[DenseUpdate]) -> None:
        """As `update`, along directions written out."""

    def _apply(self, x: Tensor, alpha: float, seed: int, offset: int) -> None:
        ops.apply_probe_(x, alpha, seed, offset=offset, distribution=self.distribution)

    def forget_versions(self) -> None:
        """Makes the next step take all parameters in anew."""
        self._versions = None

    def _changed_slots(self) -> set[Slot]:
        """Slots whose parameters were written from outside since the last step (all, before the first)."""
        self.arena.check()
        parameters = self.arena.parameters
        if self._versions is None:
            return set(self.arena.slots)
        return {
            self.arena.slot_of(p) for p, known in zip(parameters, self._versions, strict=True) if p._version != known
        }

    def _note_versions(self, *, written: bool) -> None:
        parameters = self.arena.parameters
        if written:  # kernels write to memory: autograd must hear of it
            torch.autograd.graph.increment_version(parameters)
        self._versions = [p._version for p in parameters]
