"""Keeps theta, moves the parameters around it while losses are taken, and updates it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..distributions import is_exact_in_place
from ..interrupts import deferred_interrupts
from ..params.grid import Grid
from ..params.layout import Slot
from ..params.memory import device_memory
from ..params.space import ParameterSpace
from .base import DenseUpdate, Displacement, GroupUpdate
from .inplace import InPlace, is_lost_on_grid_alone
from .shadow import Shadow
from .streamed import Streamed

_logger = logging.getLogger("zo_kernels")


class Perturbation:
    """Moves the parameters of a space: some in place, some next to a shadow copy, some where they are used.

    mode: "inplace", "shadow" or "streamed" for all parameters. "auto": a parameter is perturbed in place where its
        dtype and the distribution allow it, until its grid turns out to be too coarse for eps or for the updates. Then,
        and otherwise, it gets a shadow copy. Only if the shadow copies of all 16-bit parameters would not fit their
        device beside the parameters are these streamed, if `may_stream`.
    spacings: as for `InPlace`.

    A step is `begin`, any number of calls of `move`, then `update` or `leave`. Raises ValueError or TypeError if
    parameters can't be perturbed in place, but mode is "inplace".
    """

    def __init__(
        self, space: ParameterSpace, distribution: str, mode: str, spacings: Sequence[float | None],
        may_stream: bool = True,
    ) -> None:  # fmt: skip
        self.space, self.distribution, self.requested_mode = space, distribution, mode
        if mode == "inplace":
            if not is_exact_in_place(distribution):
                raise ValueError(f"{distribution} probes can't be undone exactly in place: use mode='shadow'")
            for slot in space.trained:
                Grid.of_spacing(1.0, space.dtype(slot))  # refuses 16-bit dtypes
        if mode == "streamed" and space.shards is not None:
            raise ValueError(
                "a forward pass uses gathered copies of sharded parameters, which mode='streamed' does not "
                "know: use mode='shadow'"
            )
        for spacing in spacings:
            if spacing is not None:
                Grid.of_spacing(spacing, torch.float32)
        self.streams_16_bits = False
        if mode == "auto" and may_stream and space.shards is None:
            self.streams_16_bits = not _has_room_for_shadows(space)
        self.in_place = InPlace(space, distribution, spacings)
        self.shadow = Shadow(space, distribution)
        self.streamed = Streamed(space, distribution)
        self._in_shadow: set[Slot] = set()  # that mode "auto" has moved there
        self.assign()

    @property
    def mode(self) -> str:
        """How the parameters are perturbed now: "inplace", "shadow", "streamed", or "mixed" if in several ways."""
        parts = {"inplace": self.in_place, "shadow": self.shadow, "streamed": self.streamed}
        used = [name for name, part in parts.items() if part.slots]
        return used[0] if len(used) == 1 else "mixed" if used else "inplace"

    @property
    def largest(self) -> float:
        """About the largest magnitude of all parameters; 0 if all are 0."""
        return max(self.in_place.largest, self.shadow.largest, self.streamed.largest)

    @property
    def tensors(self) -> list[Tensor]:
        """The memory of theta while the parameters are not moved."""
        return [*self.in_place.tensors, *self.shadow.tensors, *self.streamed.tensors]

    def theta(self, slot: Slot) -> Tensor:
        """theta of a trained parameter: the elements that this process holds. Valid while it is not moved."""
        return self.shadow.theta[slot] if slot in self.shadow.theta else self.space.memory(slot)

    def theta_dtype(self, slot: Slot) -> torch.dtype:
        """The dtype of a parameter's theta."""
        return self.shadow.dtype(slot) if self._way(slot) == "shadow" else self.space.dtype(slot)

    def add_group(
        self, named: Sequence[tuple[str, Tensor]], padding: Mapping[Tensor, int], spacing: float | None
    ) -> None:
        """Adds a parameter group. Raises what `ParameterSpace` raises, and is then what it was."""
        if spacing is not None:
            Grid.of_spacing(spacing, torch.float32)
        self.space.add_groups([named], padding)
        self.in_place.spacings.append(spacing)
        self.space.refresh()
        self.assign()

    def begin(self, eps: Sequence[float], probes_at_once: int = 1) -> list[float]:
        """Starts a step and returns the eps to use for each group, which may be rounded.

        Reads parameters that were changed from outside, and checks them. Raises ValueError if one is NaN or infinite,
        and GridRangeError if one or its perturbation does not fit the grid.

        eps: requested eps of each group. probes_at_once: the most displacements that a `move` of this step will have.
        """
        changed, is_other = self.space.refresh()
        if is_other:
            self.assign()
        self.in_place.choose_grids(changed, [probes_at_once * e for e in eps])
        changed |= self._fit([0.0] * len(eps)) | self._cast_out_fine(eps)
        used = self.in_place.round_eps(eps)
        if widened := self._fit([probes_at_once * e for e in used]):
            changed |= widened | self._cast_out_fine(used)
            used = self.in_place.round_eps(used)
        self.in_place.snap(changed)
        self.shadow.read(changed)
        self.streamed.read(changed)
        if changed:
            self.space.note_versions(written=bool(self.in_place.slots))
        return used

    def move(self, *to: Displacement) -> None:
        """Sets the parameters to theta plus all of the displacements."""
        self._reshard()
        if self.in_place.slots:
            self.in_place.move(to)
        if self.shadow.slots:
            self.shadow.move(to)
        if self.streamed.slots:
            self.streamed.move(to)

    def seen_moved(self) -> AbstractContextManager[object]:
        """Context in which a forward pass sees the parameters where `move` has set them."""
        return self.streamed.seen_moved()

    def leave(self) -> None:
        """Sets the parameters back to theta, bit for bit. Does nothing if they were not moved."""
        self._reshard()
        self.streamed.leave()
        if self.in_place.is_moved or self.shadow.is_moved:
            self.in_place.leave()
            self.shadow.leave()
            self.space.note_versions(written=False)  # these writes are ours: all processes must see the same changes
        for part in (self.in_place, self.shadow, self.streamed):
            part.release()

    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        """Updates theta and sets the parameters to it. The caller defers interrupts (`deferred_interrupts`).

        Raises GridRangeError, without changing theta, if theta could leave the grid's range.
        """
        self._fit([float(u.coeffs.abs().sum()) for u in updates])
        if self.requested_mode == "auto":
            stalled = self.in_place.stalled(updates)
            if stalled:
                self.leave()  # theta itself is looked at
            swallowed = {slot for slot, move in stalled if is_lost_on_grid_alone(self.in_place, slot, move)}
            self._cast_out(swallowed, "swallows such small steps")
            self.shadow.read(swallowed)
        self._reshard()
        if self.in_place.slots:
            self.in_place.update(seeds, updates)
        if self.shadow.slots:
            self.shadow.update(seeds, updates)
        if self.streamed.slots:
            self.streamed.update(seeds, updates)
        self._finish()

    def update_densely(self, direction: dict[Slot, Tensor], updates: Sequence[DenseUpdate]) -> None:
        """Like `update`, along a dense direction: a tensor like `theta` for each parameter. It may be overwritten."""
        self.leave()
        self._fit(self.in_place.dense_steps(direction, updates))
        self._reshard()
        if self.in_place.slots:
            self.in_place.update_densely(direction, updates)
        if self.shadow.slots:
            self.shadow.update_densely(direction, updates)
        if self.streamed.slots:
            self.streamed.update_densely(direction, updates)
        self._finish()

    def assign(self) -> None:
        """Divides the trained parameters among the ways."""
        trained = set(self.space.trained)
        groups = [[slot for slot in group if slot in trained] for group in self.space.groups]
        for way, part in (("inplace", self.in_place), ("shadow", self.shadow), ("streamed", self.streamed)):
            part.assign([[s for s in group if self._way(s) == way] for group in groups])
        for slot in set(self.shadow.theta) - set(self.shadow.slots):
            del self.shadow.theta[slot]

    def _way(self, slot: Slot) -> str:
        """ "inplace", "shadow" or "streamed"."""
        if self.requested_mode != "auto":
            return self.requested_mode
        dtype = self.space.dtype(slot)
        if self.streams_16_bits and dtype.itemsize == 2:
            return "streamed"
        exact = dtype in (torch.float32, torch.float64) and is_exact_in_place(self.distribution)
        return "inplace" if exact and slot not in self._in_shadow else "shadow"

    def _fit(self, reach: Sequence[float]) -> set[Slot]:
        """Makes sure that parameters stay on their grids if the groups move by `reach`.

        In mode "auto" a parameter that outgrows its grid gets a coarser one. Returns these parameters. Raises
        GridRangeError in mode "inplace", where the user has set the grid, and for a move as large as the whole range.
        """
        if not self.in_place.is_near_limit(reach):
            return set()
        self.leave()
        outgrown = self.in_place.out_of_range(reach)
        if outgrown and (self.requested_mode != "auto" or not self.in_place.widen_grids(outgrown)):
            raise self.in_place.range_error(outgrown)
        return set(outgrown)

    def _cast_out_fine(self, eps: Sequence[float]) -> set[Slot]:
        """In mode "auto", moves parameters from the grid to a shadow copy whose grid is too coarse for eps."""
        if self.requested_mode != "auto":
            return set()
        too_coarse = {
            slot
            for group, e in zip(self.in_place.groups, eps, strict=True)
            for slot in group
            if 0 < e < self.in_place.grids[slot].spacing
        }
        self._cast_out(too_coarse, "is coarser than eps")
        return too_coarse

    def _cast_out(self, slots: set[Slot], why: str) -> None:
        """Moves parameters from the grid to a shadow copy."""
        if not slots:
            return
        for slot in slots:
            spacing = self.in_place.grids[slot].spacing
            _logger.info("parameter %s gets a shadow copy: its grid of %g %s", slot.name, spacing, why)
        with deferred_interrupts():
            self.leave()
            self._in_shadow |= slots
            self.assign()

    def _finish(self) -> None:
        for part in (self.in_place, self.shadow, self.streamed):
            part.release()
        self.space.note_versions(written=True)

    def _reshard(self) -> None:
        if self.space.shards is not None:
            self.space.shards.reshard()

    def spacing(self, slot: Slot) -> float | None:
        """Spacing of the grid that a parameter lies on; None if it has none."""
        grid = self.in_place.grids.get(slot)
        return None if grid is None or slot in self.shadow.theta else grid.spacing

    def renumber(self, offsets: dict[Tensor, int]) -> None:
        """Gives parameters the offsets of a saved state. Grids and shadow copies are then to be loaded, too."""
        self.space.renumber(offsets)
        self.in_place.forget()
        self.shadow.theta = {}
        self._in_shadow = set()

    def load(self, spacings: dict[Slot, float | None], theta: dict[Slot, Tensor]) -> None:
        """Continues from saved spacings and shadow copies. The next `begin` reads all parameters."""
        self._in_shadow = set(theta)
        self.assign()
        self.in_place.grids = {
            slot: Grid.of_spacing(spacing, self.space.dtype(slot))
            for slot, spacing in spacings.items()
            if spacing is not None
        }
        for slot, saved in theta.items():
            memory = self.space.memory(slot)
            copied = torch.empty(memory.shape, dtype=self.shadow.dtype(slot), device=memory.device)
            self.shadow.theta[slot] = copied.copy_(saved.view(memory.shape))
        self.space.forget_versions()


def _has_room_for_shadows(space: ParameterSpace) -> bool:
    """Whether the parameters and float32 copies of those of 16 bits fit their devices, if these hold nothing else.

    Depends on the machine alone, not on what else it does: replicas on equal machines decide alike.
    """
    needed: Counter[torch.device] = Counter()
    for slot in space.trained:
        memory = space.memory(slot)
        needed[memory.device] += memory.numel() * (memory.element_size() + (4 if memory.element_size() == 2 else 0))
    lacking = [device for device, count in needed.items() if count > device_memory(device)]
    if lacking:
        _logger.info("16-bit parameters are streamed: %s has no room for shadow copies of them", lacking[0])
    return not lacking
