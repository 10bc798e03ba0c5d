"""Perturbation with a shadow copy: exact for any dtype and probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..arena import ParameterArena
from ..grid import largest_magnitude
from ..interrupts import deferred_interrupts
from .base import DenseUpdate, Displacement, GroupUpdate, Perturbation, Segment


class Shadow(Perturbation):
    """Keeps theta aside and writes the perturbed parameters beside it: exact for any dtype, one more copy.

    theta of 16-bit parameters is kept in float32, so that updates smaller than their last bit add up.
    """

    def __init__(self, arena: ParameterArena, segments: Sequence[Segment], distribution: str) -> None:
        super().__init__(arena, segments, distribution)
        wide = arena.flat.dtype if arena.flat.dtype.itemsize >= 4 else torch.float32
        self._theta = arena.flat.to(wide, copy=True)
        self._moved = False

    @property
    def theta(self) -> Tensor:
        return self._theta

    def begin(self, eps: Sequence[float], probes_at_once: int = 1) -> list[float]:
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

    def move(self, *to: Displacement) -> None:
        self._moved = True
        for number, (seed, alphas) in enumerate(to):
            for alpha, segment in zip(alphas, self.segments, strict=True):
                perturbed = segment.of(self.arena.flat)
                if number:
                    self._apply(perturbed, alpha, seed, segment.start)
                    continue
                ops.apply_probe(
                    segment.of(self.theta),
                    alpha,
                    seed,
                    offset=segment.start,
                    out=perturbed,
                    distribution=self.distribution,
                )

    def leave(self) -> None:
        if self._moved:
            self.arena.flat.copy_(self.theta)
            self._moved = False

    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        with deferred_interrupts():
            for segment, u in zip(self.segments, updates, strict=True):
                ops.accumulate_probes_(
                    segment.of(self.theta),
                    u.coeffs,
                    seeds,
                    offset=segment.start,
                    decay=u.decay,
                    distribution=self.distribution,
                )
            self._cast_theta()

    def update_densely(self, updates: Sequence[DenseUpdate]) -> None:
        with deferred_interrupts():
            for segment, u in zip(self.segments, updates, strict=True):
                segment.of(self.theta).mul_(u.decay).sub_(u.direction, alpha=u.lr)
            self._cast_theta()

    def _cast_theta(self) -> None:
        self.arena.clear_padding(self.theta)
        self.arena.flat.copy_(self.theta)
        self._moved = False
        self._note_versions(written=True)
