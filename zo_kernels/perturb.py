"""Moving theta to a probe and back, exactly; and the update. Two ways with one interface.

InPlace perturbs the parameters themselves (float32 or float64, on a grid). Shadow keeps theta aside and writes
cast(theta + alpha p) into the parameters (any dtype, a second copy of the parameters). Both see the parameters as
consecutive *segments* of an arena, one per parameter group, each with its own alpha.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import ops
from .arena import ParameterArena, Slot
from .errors import GridRangeError
from .grid import Grid, largest_magnitude
from .interrupts import deferred_interrupts

_logger = logging.getLogger("zo_kernels")


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


class Perturbation(ABC):
    """Where theta is, and how it moves. `move` to as many probes as wanted, then `update` or `leave`."""

    def __init__(self, arena: ParameterArena, segments: Sequence[Segment]) -> None:
        self.arena = arena
        self.segments = list(segments)
        self._versions: list[int] | None = None

    @abstractmethod
    def begin(self, eps: Sequence[float]) -> list[float]:
        """Starts a step: takes in parameters changed from outside, checks them, and returns the eps to be used."""

    @abstractmethod
    def move(self, seed: int, alphas: Sequence[float]) -> None:
        """Makes the parameters theta + alphas[k] * p(seed), for each segment k."""

    @abstractmethod
    def leave(self) -> None:
        """Makes the parameters theta again, bit for bit. Does nothing if they are."""

    @abstractmethod
    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        """Changes theta and makes the parameters theta. Raises GridRangeError, having changed nothing."""

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


class InPlace(Perturbation):
    """Perturbs the parameters themselves: no second copy, one pass over theta from each probe to the next."""

    def __init__(self, arena: ParameterArena, segments: Sequence[Segment], spacings: Sequence[float | None]) -> None:
        super().__init__(arena, segments)
        dtype = arena.flat.dtype
        Grid.of_spacing(1.0, dtype)  # refuses 16-bit dtypes
        self.grids: list[Grid | None] = [None if s is None else Grid.of_spacing(s, dtype) for s in spacings]
        self._bounds = [0.0] * len(self.segments)  # upper bounds of max |theta|
        self._at: tuple[int, list[float]] | None = None
        self._warned = False

    def begin(self, eps: Sequence[float]) -> list[float]:
        changed = self._changed_slots()
        used = []
        for k, segment in enumerate(self.segments):
            if not changed.isdisjoint(segment.slots):
                self._snap(k, eps[k])
            rounded = self._grid(k).round_eps(eps[k])
            self._require_range(k, rounded)
            used.append(rounded)
        if changed:
            self._note_versions(written=True)
        return used

    def move(self, seed: int, alphas: Sequence[float]) -> None:
        with deferred_interrupts():
            for k, segment in enumerate(self.segments):
                theta, offset = segment.of(self.arena.flat), segment.start
                if self._at is None:
                    ops.apply_probe_(theta, alphas[k], seed, offset=offset)
                elif self._at[0] == seed:
                    ops.apply_probe_(theta, alphas[k] - self._at[1][k], seed, offset=offset)
                else:
                    ops.swap_probe_(theta, -self._at[1][k], self._at[0], alphas[k], seed, offset=offset)
            self._at = (seed, list(alphas))

    def leave(self) -> None:
        if self._at is None:
            return
        with deferred_interrupts():
            seed, alphas = self._at
            for alpha, segment in zip(alphas, self.segments, strict=True):
                ops.apply_probe_(segment.of(self.arena.flat), -alpha, seed, offset=segment.start)
            self._at = None

    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        steps = [float(u.coeffs.abs().sum()) for u in updates]
        if any(self._bounds[k] + step >= self._grid(k).limit for k, step in enumerate(steps)):
            self.leave()
            for k, step in enumerate(steps):
                self._require_range(k, step)
        self._warn_if_lost(steps)
        with deferred_interrupts():
            seed, alphas = self._at or (0, [0.0] * len(self.segments))
            for k, (segment, u) in enumerate(zip(self.segments, updates, strict=True)):
                ops.accumulate_probes_(
                    segment.of(self.arena.flat),
                    u.coeffs,
                    seeds,
                    offset=segment.start,
                    decay=u.decay,
                    grid=self._grid(k).spacing,
                    undo_alpha=-alphas[k],
                    undo_seed=seed,
                )
                self._bounds[k] += steps[k] + self._grid(k).spacing
            self._at = None
            self.arena.clear_padding()
            self._note_versions(written=True)

    def _warn_if_lost(self, steps: Sequence[float]) -> None:
        spacings = [self._grid(k).spacing for k in range(len(steps))]
        if not self._warned and any(0 < step < spacing / 2 for step, spacing in zip(steps, spacings, strict=True)):
            self._warned = True
            _logger.warning(
                "a step of at most %.3g rounds to nothing on a grid of %.3g: "
                "use a larger lr, a finer grid or mode='shadow'",
                min(steps),
                max(spacings),
            )

    def _grid(self, k: int) -> Grid:
        grid = self.grids[k]
        assert grid is not None, "begin() makes the grid"
        return grid

    def _snap(self, k: int, eps: float) -> None:
        """Takes in the segment's parameters as they are now: checks them and rounds them to the grid."""
        segment = self.segments[k]
        self._bounds[k] = self._measure(k)
        grid = self.grids[k] or Grid.for_range(self._bounds[k] + eps, self.arena.flat.dtype)
        self.grids[k] = grid
        self._require_range(k, 0.0)
        none = torch.zeros(0, dtype=torch.int64)
        ops.accumulate_probes_(
            segment.of(self.arena.flat), none.double(), none, offset=segment.start, grid=grid.spacing
        )

    def _measure(self, k: int) -> float:
        for slot in self.segments[k].slots:
            if not largest_magnitude(self.arena.view(slot)) < float("inf"):
                raise ValueError(f"parameter {slot.name} holds a NaN or infinite value")
        return largest_magnitude(self.segments[k].of(self.arena.flat))

    def _require_range(self, k: int, reach: float) -> None:
        """Raises GridRangeError unless every parameter of segment k may change by `reach` and stay on the grid."""
        grid = self._grid(k)
        if self._bounds[k] + reach < grid.limit:
            return
        self._bounds[k] = self._measure(k)
        if self._bounds[k] + reach < grid.limit:
            return
        slot = max(self.segments[k].slots, key=lambda s: largest_magnitude(self.arena.view(s)))
        raise GridRangeError(
            f"parameter {slot.name} (largest magnitude {self._bounds[k]:.6g}, could move by {reach:.3g}) may leave the "
            f"range {grid.limit:g} in which its grid of {grid.spacing:g} is exact; lower lr, set a coarser grid "
            f"(grid={4 * grid.spacing!r}), or use mode='shadow'"
        )


class Shadow(Perturbation):
    """Keeps theta aside and writes the perturbed parameters beside it: exact for any dtype, one more copy.

    theta of 16-bit parameters is kept in float32, so that updates smaller than their last bit add up.
    """

    def __init__(self, arena: ParameterArena, segments: Sequence[Segment]) -> None:
        super().__init__(arena, segments)
        wide = arena.flat.dtype if arena.flat.dtype.itemsize >= 4 else torch.float32
        self.theta = arena.flat.to(wide, copy=True)
        self._moved = False

    def begin(self, eps: Sequence[float]) -> list[float]:
        changed = self._changed_slots()
        for slot in changed:
            span = slice(slot.offset, slot.offset + slot.numel)
            # A parameter that is the cast of theta (as after loading both from a checkpoint) is no change.
            if not torch.equal(self.theta[span].to(self.arena.flat.dtype), self.arena.flat[span]):
                self.theta[span].copy_(self.arena.flat[span])
            if not largest_magnitude(self.theta[span]) < float("inf"):
                raise ValueError(f"parameter {slot.name} holds a NaN or infinite value")
        if changed:
            self._note_versions(written=False)
        return list(eps)

    def move(self, seed: int, alphas: Sequence[float]) -> None:
        self._moved = True
        for alpha, segment in zip(alphas, self.segments, strict=True):
            perturbed = segment.of(self.arena.flat)
            ops.apply_probe(segment.of(self.theta), alpha, seed, offset=segment.start, out=perturbed)

    def leave(self) -> None:
        if self._moved:
            self.arena.flat.copy_(self.theta)
            self._moved = False

    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        with deferred_interrupts():
            for segment, u in zip(self.segments, updates, strict=True):
                theta = segment.of(self.theta)
                ops.accumulate_probes_(theta, u.coeffs, seeds, offset=segment.start, decay=u.decay)
            self.arena.clear_padding(self.theta)
            self.arena.flat.copy_(self.theta)
            self._moved = False
            self._note_versions(written=True)
