"""Perturbs parameters in place, which is exact on a grid and needs no second copy."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..backends.pieces import Pieces
from ..errors import GridRangeError
from ..interrupts import deferred_interrupts
from ..ops.lists import accumulate_probes_list, apply_probe_list, swap_probe_list
from ..params.batch import Batch
from ..params.grid import Grid
from ..params.layout import Slot
from ..params.space import ParameterSpace
from .base import DenseUpdate, Displacement, GroupUpdate, Part, require_finite

_logger = logging.getLogger("zo_kernels")

_NO_SEEDS = torch.zeros(0, dtype=torch.int64)


class InPlace(Part):
    """Perturbs the parameters themselves, without a second copy. Moving from one probe to the next is one pass.

    spacings: spacing of each group's grid, or None to choose a grid for each parameter when it is read.
    """

    grids: dict[Slot, Grid]
    """The grid of each parameter that was read."""
    spacings: list[float | None]
    is_common: bool
    """Whether all parameters of a group share one grid, as in version 0.1."""

    def __init__(self, space: ParameterSpace, distribution: str, spacings: Sequence[float | None]) -> None:
        super().__init__(space, distribution)
        self.spacings = list(spacings)
        self.grids = {}
        self.is_common = False
        self._bounds: dict[Slot, float] = {}  # upper bounds of max |theta|
        self._at: tuple[Displacement, ...] = ()
        self._by_grid: list[list[tuple[float, Batch]]] = []
        self._warned = False

    @property
    def tensors(self) -> list[Tensor]:
        return [self.space.memory(slot) for slot in self.slots]

    def assign(self, groups: list[list[Slot]]) -> None:
        super().assign(groups)
        self._by_grid = []

    @property
    def largest(self) -> float:
        """An upper bound of the largest magnitude of all parameters."""
        return max((self._bounds.get(slot, 0.0) for slot in self.slots), default=0.0)

    def forget(self) -> None:
        """Forgets all grids and magnitudes."""
        self.grids, self._bounds, self._by_grid = {}, {}, []

    def choose_grids(self, changed: set[Slot], reach: Sequence[float]) -> None:
        """Measures parameters that were written from outside, and chooses a grid for those that have none.

        reach: by how much each group may be perturbed. Raises ValueError if a parameter is NaN or infinite.
        """
        slots = [slot for slot in self.slots if slot in changed or slot not in self._bounds]
        found = self.space.magnitudes(slots)
        require_finite(slots, found)
        self._bounds.update(zip(slots, found, strict=True))
        for group, spacing, most in zip(self.groups, self.spacings, reach, strict=True):
            largest = max((self._bounds[slot] for slot in group), default=0.0)
            for slot in group:
                if slot in self.grids:
                    continue
                dtype = self.space.dtype(slot)
                if spacing is not None:
                    self.grids[slot] = Grid.of_spacing(spacing, dtype)
                else:
                    self.grids[slot] = Grid.for_range((largest if self.is_common else self._bounds[slot]) + most, dtype)
                self._by_grid = []

    def round_eps(self, eps: Sequence[float]) -> list[float]:
        """The eps of each group as a multiple of the spacings of its grids. Raises GridRangeError."""
        used = []
        for group, e in zip(self.groups, eps, strict=True):
            coarsest = max((self.grids[slot] for slot in group), key=lambda grid: grid.spacing, default=None)
            used.append(coarsest.round_eps(e) if coarsest and e else e)
        return used

    def out_of_range(self, reach: Sequence[float]) -> dict[Slot, float]:
        """The parameters that might leave the range of their grid if each group changes by this much at most.

        Returns how much they might. Parameters must not be moved when this is called.
        """
        found = {}
        for group, most in zip(self.groups, reach, strict=True):
            for slot in group:
                if self._bounds[slot] + most >= self.grids[slot].limit:
                    self._bounds[slot] = self.space.magnitudes([slot])[0]
                    if self._bounds[slot] + most >= self.grids[slot].limit:
                        found[slot] = most
        return found

    def widen_grids(self, outgrown: Mapping[Slot, float]) -> bool:
        """Gives parameters that outgrow their grids coarser ones, to which the next pass rounds them.

        Returns False, changing nothing, if the user has set a grid or a parameter would move by its whole range.
        """
        spacing_of = {slot: s for s, group in zip(self.spacings, self.groups, strict=True) for slot in group}
        if any(spacing_of[slot] is not None or most >= self.grids[slot].limit for slot, most in outgrown.items()):
            return False
        for slot, most in outgrown.items():
            self.grids[slot] = Grid.for_range(self._bounds[slot] + most, self.space.dtype(slot))
        self._by_grid = []
        return True

    def is_near_limit(self, reach: Sequence[float]) -> bool:
        """Whether `out_of_range` has to look at parameters."""
        return any(
            self._bounds[slot] + most >= self.grids[slot].limit
            for group, most in zip(self.groups, reach, strict=True)
            for slot in group
        )

    def range_error(self, outgrown: Mapping[Slot, float]) -> GridRangeError:
        """The error for parameters that might leave the range of their grids. It names the one that is largest."""
        slot = max(outgrown, key=lambda slot: self._bounds[slot])
        grid, largest = self.grids[slot], self._bounds[slot]
        return GridRangeError(
            f"parameter {slot.name} (largest magnitude {largest:.6g}, could move by {outgrown[slot]:.3g}) may leave "
            f"the range {grid.limit:g} in which its grid of {grid.spacing:g} is exact; lower lr, set a coarser grid "
            f"(grid={4 * grid.spacing!r}), or use mode='shadow'"
        )

    def snap(self, changed: set[Slot]) -> None:
        """Rounds parameters to their grids."""
        for batches in self._on_grids():
            for spacing, batch in batches:
                if not changed.isdisjoint(batch.slots):
                    batch.run(partial(_round, spacing))

    def move(self, to: Sequence[Displacement]) -> None:
        if len(self._at) != 1 or len(to) != 1 or self.distribution != "rademacher":
            self.leave()
            with deferred_interrupts():
                self._displace(to, 1.0)
                self._at = tuple(to)
            return
        (seed, alphas), (next_seed, next_alphas) = self._at[0], to[0]
        with deferred_interrupts():  # undo one probe and apply the next in one pass
            for batches, alpha, next_alpha in zip(self._batches, alphas, next_alphas, strict=True):
                kernel: Callable[[Pieces], None]
                if next_seed == seed:
                    kernel = partial(_add, next_alpha - alpha, seed, self.distribution)
                else:
                    kernel = partial(_swap, -alpha, seed, next_alpha, next_seed)
                for batch in batches:
                    batch.run(kernel)
            self._at = tuple(to)

    @property
    def is_moved(self) -> bool:
        return bool(self._at)

    def leave(self) -> None:
        if not self._at:
            return
        with deferred_interrupts():
            self._displace(self._at, -1.0)
            self._at = ()

    def _displace(self, by: Sequence[Displacement], sign: float) -> None:
        for seed, alphas in by:
            for alpha, batches in zip(alphas, self._batches, strict=True):
                kernel = partial(_add, sign * alpha, seed, self.distribution)
                for batch in batches:
                    batch.run(kernel)

    def stalled(self, updates: Sequence[GroupUpdate]) -> list[tuple[Slot, float]]:
        """The parameters whose grid swallows an update: it moves elements by less than half the spacing, typically.

        The second value is the typical move of an element.
        """
        found = []
        for group, u in zip(self.groups, updates, strict=True):
            typical = u.typical_move
            found += [(slot, typical) for slot in group if 0 < typical < self.grids[slot].spacing / 2]
        return found

    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        steps = [float(u.coeffs.abs().sum()) for u in updates]
        self._warn_if_lost(steps)
        if len(self._at) > 1:  # the update's pass can undo only one displacement
            self.leave()
        seed, alphas = self._at[0] if self._at else (0, [0.0] * len(self.groups))
        for batches, u, alpha in zip(self._on_grids(), updates, alphas, strict=True):
            for spacing, batch in batches:

                def kernel(x: Pieces, u: GroupUpdate = u, spacing: float = spacing, alpha: float = alpha) -> None:
                    accumulate_probes_list(
                        x,
                        u.coeffs,
                        seeds,
                        self.distribution,
                        decay=u.decay,
                        grid=spacing,
                        undo_alpha=-alpha,
                        undo_seed=seed,
                    )

                batch.run(kernel)
        self._at = ()
        self._widen(steps)

    def update_densely(self, direction: dict[Slot, Tensor], updates: Sequence[DenseUpdate]) -> None:
        steps = self.dense_steps(direction, updates)
        self._warn_if_lost(steps)
        for batches, u in zip(self._on_grids(), updates, strict=True):
            for spacing, batch in batches:
                batch.run(u, direction)
                batch.run(partial(_round, spacing))
        self._widen(steps)

    def dense_steps(self, direction: dict[Slot, Tensor], updates: Sequence[DenseUpdate]) -> list[float]:
        """The largest move of an element of each group."""
        return [
            abs(u.lr) * max(self.space.magnitudes(group, direction), default=0.0)
            for group, u in zip(self.groups, updates, strict=True)
        ]

    def release(self) -> None:
        super().release()
        for batches in self._by_grid:
            for _, batch in batches:
                batch.release()

    def _widen(self, steps: Sequence[float]) -> None:
        for group, step in zip(self.groups, steps, strict=True):
            for slot in group:
                if step > 0:  # a decay alone rounds to no larger point of the grid
                    self._bounds[slot] += step + self.grids[slot].spacing

    def _warn_if_lost(self, steps: Sequence[float]) -> None:
        lost = [
            (step, self.grids[slot].spacing)
            for group, step in zip(self.groups, steps, strict=True)
            for slot in group
            if 0 < step < self.grids[slot].spacing / 2
        ]
        if lost and not self._warned:
            self._warned = True
            _logger.warning(
                "a step of at most %.3g rounds to 0 on a grid of spacing %.3g: "
                "use a larger lr, a finer grid or mode='shadow'",
                *lost[0],
            )

    def _on_grids(self) -> list[list[tuple[float, Batch]]]:
        """The batches of each group whose parameters have one grid in common, with its spacing."""
        if not self._by_grid:
            for group, batches in zip(self.groups, self._batches, strict=True):
                spacings = sorted({self.grids[slot].spacing for slot in group})
                if len(spacings) > 1:
                    by_spacing = [
                        (spacing, self.space.batches(s for s in group if self.grids[s].spacing == spacing))
                        for spacing in spacings
                    ]
                else:
                    by_spacing = [(spacing, batches) for spacing in spacings]
                self._by_grid.append([(spacing, batch) for spacing, some in by_spacing for batch in some])
        return self._by_grid


def is_lost_on_grid_alone(part: InPlace, slot: Slot, move: float) -> bool:
    """Whether float32 numbers would show a move that the grid swallows, for at least half of the elements."""
    return 2 * part.space.count_below(slot, math.ldexp(move, 24)) >= slot.numel


def _add(alpha: float, seed: int, distribution: str, x: Pieces) -> None:
    apply_probe_list(x, x, alpha, seed, distribution)


def _swap(alpha: float, seed: int, next_alpha: float, next_seed: int, x: Pieces) -> None:
    swap_probe_list(x, alpha, seed, next_alpha, next_seed)


def _round(spacing: float, x: Pieces, *_: Any) -> None:
    accumulate_probes_list(x, torch.zeros(0, dtype=torch.float64), _NO_SEEDS, "rademacher", grid=spacing)
