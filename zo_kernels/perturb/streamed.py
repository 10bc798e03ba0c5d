"""Perturbs parameters where they are used: losses are taken without writing theta and without a second copy."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from ..backends.pieces import Pieces
from ..ops.lists import accumulate_probes_list, apply_probe_list
from ..params.batch import Batch
from ..params.layout import Slot
from ..philox import BLOCK_SIGNS
from .base import DenseUpdate, Displacement, GroupUpdate, Part, require_finite
from .swap import Swap

_logger = logging.getLogger("zo_kernels")


class Streamed(Part):
    """Gives every torch function that is called with a parameter a perturbed copy instead, which dies with its use.

    The copies have the bits that `Shadow` would write into the parameters. The update computes in float32, and rounds
    16-bit parameters stochastically: what is smaller than their last bit adds up in the mean.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self._at: tuple[Displacement, ...] = ()
        self._group_of: dict[Slot, int] = {}
        self._batch_of: dict[Slot, Batch] = {}
        self._magnitudes: dict[Slot, float] = {}  # when they were read
        self._used: set[Slot] = set()
        self._warned = False

    @property
    def largest(self) -> float:
        """The largest magnitude of all parameters when they were read."""
        return max((self._magnitudes.get(slot, 0.0) for slot in self.slots), default=0.0)

    @property
    def tensors(self) -> list[Tensor]:
        return [self.space.memory(slot) for slot in self.slots]

    def assign(self, groups: list[list[Slot]]) -> None:
        super().assign(groups)
        self._group_of = {slot: number for number, group in enumerate(groups) for slot in group}
        self._batch_of = {slot: self.space.batches([slot])[0] for slot in self.slots}

    def read(self, changed: Iterable[Slot]) -> None:
        """Looks at parameters that were written from outside. Raises ValueError if one is NaN or infinite."""
        slots = [slot for slot in self.slots if slot in changed]
        found = self.space.magnitudes(slots)
        require_finite(slots, found)
        self._magnitudes.update(zip(slots, found, strict=True))

    def move(self, to: Sequence[Displacement]) -> None:
        self._at = tuple(to)

    @property
    def is_moved(self) -> bool:
        return bool(self._at)

    def leave(self) -> None:
        self._at = ()

    def seen_moved(self) -> AbstractContextManager[object]:
        """Context in which torch functions see the parameters where they were moved to, in this thread."""
        return Swap(self) if self._at else nullcontext()

    def values(self, slot: Slot) -> Tensor:
        """New memory with a parameter as it was moved, of its shape, dtype, device and strides."""
        self._used.add(slot)
        theta, batch, group = self.space.memory(slot), self._batch_of[slot], self._group_of[slot]
        (seed, alphas), *others = self._at
        if self._is_whole(slot, theta):
            out = torch.empty_like(theta)
            source, target = (Pieces([x.view(-1)], [slot.offset]) for x in (theta, out))
            apply_probe_list(source, target, alphas[group], seed, self.distribution)
        else:
            out, others = theta.clone(memory_format=torch.contiguous_format), list(self._at)
        for seed, alphas in others:
            batch.run_on(partial(self._add, alphas[group], seed), {slot: out})
        batch.release()
        return out if theta.is_contiguous() else torch.empty_like(theta).copy_(out)

    def rows(self, slot: Slot, numbers: Sequence[int]) -> Tensor | None:
        """As `values`, for these rows of a matrix. None where it has to be taken as a whole."""
        theta = self.space.memory(slot)
        if not self._is_whole(slot, theta) or theta.dim() != 2 or theta.shape[1] % BLOCK_SIGNS:
            return None
        width = theta.shape[1]
        self._used.add(slot)
        offsets = [slot.offset + number * width for number in numbers]
        out, group = theta.new_empty(len(numbers), width), self._group_of[slot]
        source, target = Pieces([theta[n] for n in numbers], offsets), Pieces(out.unbind(), offsets)
        for seed, alphas in self._at:
            apply_probe_list(source, target, alphas[group], seed, self.distribution)
            source = target
        return out

    def _is_whole(self, slot: Slot, theta: Tensor) -> bool:
        """Whether all elements are trained, and lie in order."""
        return theta.is_contiguous() and self._batch_of[slot].members[0].spans == ((0, slot.numel),)

    def warn_of_unused(self) -> None:
        """Names, once, parameters that no torch function was called with since they were assigned."""
        unused = [slot.name for slot in self.slots if slot not in self._used]
        if unused and not self._warned:
            self._warned = True
            _logger.warning(
                "mode='streamed' saw no torch function use %s%s: if the closure uses it otherwise (TorchScript, an "
                "extension, another thread), it is not perturbed there; use mode='shadow' then",
                unused[0],
                f" and {len(unused) - 1} more parameters" if len(unused) > 1 else "",
            )

    def _add(self, alpha: float, seed: int, x: Pieces) -> None:
        apply_probe_list(x, x, alpha, seed, self.distribution)

    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        for batches, u in zip(self._batches, updates, strict=True):
            for batch in batches:
                batch.run(partial(self._accumulate, u, seeds))
        self._at = ()

    def _accumulate(self, u: GroupUpdate, seeds: Tensor, theta: Pieces) -> None:
        rounding_seed = u.rounding_seed if theta.dtype.itemsize == 2 else None
        accumulate_probes_list(theta, u.coeffs, seeds, self.distribution, decay=u.decay, rounding_seed=rounding_seed)

    def update_densely(self, direction: dict[Slot, Tensor], updates: Sequence[DenseUpdate]) -> None:
        raise NotImplementedError("ZeroOrder refuses dense rules in this mode")
