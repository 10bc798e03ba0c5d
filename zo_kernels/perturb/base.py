"""What the ways of perturbing parameters have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..backends.pieces import Pieces
from ..params.batch import Batch
from ..params.layout import Slot
from ..params.space import ParameterSpace


@dataclass
class GroupUpdate:
    """theta = decay * theta + sum_i coeffs[i] * p(seeds[i]) for one parameter group; coeffs float64 [n].

    rounding_seed: of the step, for 16-bit parameters that have no shadow copy.
    """

    coeffs: Tensor
    decay: float
    rounding_seed: int = 0

    @property
    def typical_move(self) -> float:
        """By how much an element typically moves: all coefficients have random signs."""
        return float(self.coeffs.square().sum().sqrt())


@dataclass
class DenseUpdate:
    """theta = decay * theta - lr * direction for one parameter group."""

    lr: float
    decay: float

    def __call__(self, theta: Pieces, direction: Pieces) -> None:
        for x, step in zip(theta.tensors, direction.tensors, strict=True):
            x.mul_(self.decay).sub_(step, alpha=self.lr)


Displacement = tuple[int, Sequence[float]]
"""(seed of a probe, alpha of each parameter group): a displacement by alpha * p(seed)."""


class Part(ABC):
    """The parameters that are perturbed in one way. `Perturbation` describes the methods."""

    def __init__(self, space: ParameterSpace, distribution: str) -> None:
        self.space = space
        self.distribution = distribution
        self.groups: list[list[Slot]] = []
        self._batches: list[list[Batch]] = []

    def assign(self, groups: list[list[Slot]]) -> None:
        """Sets the trained parameters of each group."""
        self.groups = groups
        self._batches = [self.space.batches(slots) for slots in groups]

    @property
    def slots(self) -> list[Slot]:
        """The slots of all groups."""
        return [slot for group in self.groups for slot in group]

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """The memory of theta while the parameters are not moved."""

    @abstractmethod
    def move(self, to: Sequence[Displacement]) -> None:
        """Sets the parameters to theta plus all of the displacements."""

    @property
    @abstractmethod
    def is_moved(self) -> bool:
        """Whether the parameters are moved."""

    @abstractmethod
    def leave(self) -> None:
        """Sets the parameters back to theta, bit for bit. Does nothing if they were not moved."""

    @abstractmethod
    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        """Updates theta and sets the parameters to it."""

    @abstractmethod
    def update_densely(self, direction: dict[Slot, Tensor], updates: Sequence[DenseUpdate]) -> None:
        """Like `update`, along a dense direction."""

    def release(self) -> None:
        """Forgets where the parameters lie in memory."""
        for batches in self._batches:
            for batch in batches:
                batch.release()


def require_finite(slots: Sequence[Slot], magnitudes: Sequence[float]) -> None:
    """Raises ValueError, naming the parameter, if a magnitude is not finite."""
    for slot, magnitude in zip(slots, magnitudes, strict=True):
        if not magnitude < float("inf"):
            raise ValueError(f"parameter {slot.name} holds a NaN or infinite value")
