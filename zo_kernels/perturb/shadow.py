"""Perturbs parameters next to a shadow copy of theta, which is exact for any dtype and probe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from ..backends.pieces import Pieces
from ..ops.lists import accumulate_probes_list, apply_probe_list
from ..params.layout import Slot
from .base import DenseUpdate, Displacement, GroupUpdate, Part, require_finite


class Shadow(Part):
    """Keeps theta in a second copy and writes the perturbed values into the parameters. Exact for any dtype and probe.

    For 16-bit parameters theta is float32, so that updates smaller than the parameters' last bit add up.
    """

    theta: dict[Slot, Tensor]
    """theta of each parameter: the elements that this process holds, contiguous."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.theta = {}
        self._moved = False
        self._magnitudes: dict[Slot, float] = {}  # when they were read

    @property
    def largest(self) -> float:
        """The largest magnitude of all parameters when they were read."""
        return max((self._magnitudes.get(slot, 0.0) for slot in self.slots), default=0.0)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.theta[slot] for slot in self.slots]

    def dtype(self, slot: Slot) -> torch.dtype:
        """The dtype of a parameter's theta."""
        own = self.space.dtype(slot)
        return own if own.itemsize >= 4 else torch.float32

    def read(self, changed: Iterable[Slot]) -> None:
        """Takes over parameters that were written from outside. Raises ValueError if one is NaN or infinite."""
        slots = [slot for slot in self.slots if slot in changed]
        for slot in slots:
            memory, known = self.space.memory(slot), self.theta.get(slot)
            if known is None or (known.dtype, known.device) != (self.dtype(slot), memory.device):
                copied = torch.empty(memory.shape, dtype=self.dtype(slot), device=memory.device)
                self.theta[slot] = copied.copy_(memory)
            elif not torch.equal(known.to(memory.dtype), memory):
                known.copy_(memory)  # equal to theta's cast, as after loading a checkpoint, it leaves theta as it is
        found = self.space.magnitudes(slots, self.theta)
        require_finite(slots, found)
        self._magnitudes.update(zip(slots, found, strict=True))

    def move(self, to: Sequence[Displacement]) -> None:
        self._moved = True
        for number, (seed, alphas) in enumerate(to):
            for alpha, batches in zip(alphas, self._batches, strict=True):
                for batch in batches:
                    if number:
                        batch.run(partial(self._add, alpha, seed))
                    else:
                        batch.run(partial(self._add, alpha, seed), self.theta)

    def _add(self, alpha: float, seed: int, perturbed: Pieces, theta: Pieces | None = None) -> None:
        apply_probe_list(theta or perturbed, perturbed, alpha, seed, self.distribution)

    @property
    def is_moved(self) -> bool:
        return self._moved

    def leave(self) -> None:
        if self._moved:
            self._write()

    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        for batches, u in zip(self._batches, updates, strict=True):
            kernel = partial(self._accumulate, u, seeds)
            for batch in batches:
                batch.run_on(kernel, self.theta)
        self._write()

    def _accumulate(self, u: GroupUpdate, seeds: Tensor, theta: Pieces) -> None:
        accumulate_probes_list(theta, u.coeffs, seeds, self.distribution, decay=u.decay)

    def update_densely(self, direction: dict[Slot, Tensor], updates: Sequence[DenseUpdate]) -> None:
        for batches, u in zip(self._batches, updates, strict=True):
            for batch in batches:
                batch.run_on(u, self.theta, direction)
        self._write()

    def _write(self) -> None:
        for slot in self.slots:
            self.space.memory(slot).copy_(self.theta[slot])
        self._moved = False
