"""Perturbs parameters in place, which is exact on a grid and needs no second copy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .. import ops
from ..distributions import is_exact_in_place
from ..errors import GridRangeError
from ..interrupts import deferred_interrupts
from ..params.grid import Grid
from ..params.layout import Arena, Slot
from .base import DenseUpdate, Displacement, GroupUpdate, Perturbation, Segment, require_finite

_logger = logging.getLogger("zo_kernels")


class InPlace(Perturbation):
    """Perturbs the parameters themselves, without a second copy. Moving from one probe to the next is one pass.

    spacings: spacing of each segment's grid, or None to choose it from the parameters at the first step. Raises
    ValueError for a distribution that can't be undone exactly, and TypeError for 16-bit parameters.
    """

    def __init__(
        self,
        arena: Arena,
        segments: Sequence[Segment],
        distribution: str,
        spacings: Sequence[float | None],
    ) -> None:
        super().__init__(arena, segments, distribution)
        if not is_exact_in_place(distribution):
            raise ValueError(f"{distribution} probes can't be undone exactly in place: use mode='shadow'")
        Grid.of_spacing(1.0, self.dtype)  # refuses 16-bit dtypes
        self.grids: list[Grid | None] = [None if s is None else Grid.of_spacing(s, self.dtype) for s in spacings]
        self._bounds = [0.0] * len(self.segments)  # upper bounds of max |theta|
        self._at: tuple[Displacement, ...] = ()
        self._warned = False

    @property
    def theta(self) -> Tensor:
        return self.arena.flat

    @property
    def tensors(self) -> list[Tensor]:
        return self.arena.tensors

    def begin(self, eps: Sequence[float], probes_at_once: int = 1) -> list[float]:
        changed = self._changed_slots()
        used = []
        for k, segment in enumerate(self.segments):
            if not changed.isdisjoint(segment.slots):
                self._snap(k, probes_at_once * eps[k])
            rounded = self._grid(k).round_eps(eps[k]) if eps[k] else 0.0
            self._require_range(k, probes_at_once * rounded)
            used.append(rounded)
        if changed:
            self._note_versions(written=True)
        return used

    def move(self, *to: Displacement) -> None:
        if len(self._at) != 1 or len(to) != 1 or self.distribution != "rademacher":
            self.leave()
            with deferred_interrupts():
                self._displace(to, 1.0)
                self._at = to
            return
        (seed, alphas), (next_seed, next_alphas) = self._at[0], to[0]
        with deferred_interrupts():  # undo one probe and apply the next in one pass
            for segment, alpha, next_alpha in zip(self.segments, alphas, next_alphas, strict=True):
                if next_seed == seed:
                    self.arena.each(segment, self._apply(next_alpha - alpha, seed))
                else:
                    kernel = partial(
                        ops.swap_probe_, alpha=-alpha, seed=seed, next_alpha=next_alpha, next_seed=next_seed
                    )
                    self.arena.each(segment, kernel)
            self._at = to

    def leave(self) -> None:
        if not self._at:
            return
        with deferred_interrupts():
            self._displace(self._at, -1.0)
            self._at = ()

    def _displace(self, by: Sequence[Displacement], sign: float) -> None:
        for seed, alphas in by:
            for alpha, segment in zip(alphas, self.segments, strict=True):
                self.arena.each(segment, self._apply(sign * alpha, seed))

    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        steps = [float(u.coeffs.abs().sum()) for u in updates]
        if any(self._bounds[k] + step >= self._grid(k).limit for k, step in enumerate(steps)):
            self.leave()
            for k, step in enumerate(steps):
                self._require_range(k, step)
        self._warn_if_lost(steps)
        if len(self._at) > 1:  # the update's pass can undo only one displacement
            self.leave()
        seed, alphas = self._at[0] if self._at else (0, [0.0] * len(self.segments))
        for k, (segment, u) in enumerate(zip(self.segments, updates, strict=True)):
            kernel = partial(
                ops.accumulate_probes_,
                coeffs=u.coeffs,
                seeds=seeds,
                decay=u.decay,
                grid=self._grid(k).spacing,
                undo_alpha=-alphas[k],
                undo_seed=seed,
                distribution=self.distribution,
            )
            self.arena.each(segment, kernel)
            self._bounds[k] += steps[k] + self._grid(k).spacing
        self._at = ()
        self.arena.clear_padding()
        self._note_versions(written=True)

    def update_densely(self, direction: Tensor, updates: Sequence[DenseUpdate]) -> None:
        self.leave()
        sizes = [self.arena.largest(segment, direction) for segment in self.segments]
        steps = [abs(u.lr) * size for u, size in zip(updates, sizes, strict=True)]
        for k, step in enumerate(steps):
            self._require_range(k, step)
        self._warn_if_lost(steps)
        for k, (segment, u) in enumerate(zip(self.segments, updates, strict=True)):
            self.arena.each(segment, u, direction)
            self._round_to_grid(k)
            self._bounds[k] += steps[k] + self._grid(k).spacing
        self.arena.clear_padding()
        self._note_versions(written=True)

    def _warn_if_lost(self, steps: Sequence[float]) -> None:
        spacings = [self._grid(k).spacing for k in range(len(steps))]
        if not self._warned and any(0 < step < spacing / 2 for step, spacing in zip(steps, spacings, strict=True)):
            self._warned = True
            _logger.warning(
                "a step of at most %.3g rounds to 0 on a grid of spacing %.3g: "
                "use a larger lr, a finer grid or mode='shadow'",
                min(steps),
                max(spacings),
            )

    def _grid(self, k: int) -> Grid:
        grid = self.grids[k]
        assert grid is not None, "begin() makes the grid"
        return grid

    def _snap(self, k: int, eps: float) -> None:
        """Reads the parameters of segment k, checks them and rounds them to the grid, which it chooses if not set."""
        self._bounds[k], _ = self._measure(k)
        grid = self.grids[k] or Grid.for_range(self._bounds[k] + eps, self.dtype)
        self.grids[k] = grid
        self._require_range(k, 0.0)
        self._round_to_grid(k)

    def _round_to_grid(self, k: int) -> None:
        none, spacing = torch.zeros(0, dtype=torch.int64), self._grid(k).spacing
        kernel = partial(ops.accumulate_probes_, coeffs=none.double(), seeds=none, grid=spacing)
        self.arena.each(self.segments[k], kernel)

    def _measure(self, k: int) -> tuple[float, Slot]:
        """The largest magnitude in segment k, and the slot of the parameter that has it."""
        slots = self.segments[k].slots
        found = self.arena.magnitudes(slots)
        require_finite(slots, found)
        return max(zip(found, slots, strict=True), key=lambda pair: pair[0])

    def _require_range(self, k: int, reach: float) -> None:
        """Raises GridRangeError unless all of segment k stays in the grid's range when it changes by `reach`."""
        grid = self._grid(k)
        if self._bounds[k] + reach < grid.limit:
            return
        self._bounds[k], slot = self._measure(k)
        if self._bounds[k] + reach < grid.limit:
            return
        raise GridRangeError(
            f"parameter {slot.name} (largest magnitude {self._bounds[k]:.6g}, could move by {reach:.3g}) may leave the "
            f"range {grid.limit:g} in which its grid of {grid.spacing:g} is exact; lower lr, set a coarser grid "
            f"(grid={4 * grid.spacing!r}), or use mode='shadow'"
        )
