"""Perturbs parameters next to a shadow copy of theta, which is exact for any dtype and probe."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from .. import ops
from ..params.layout import Arena
from .base import DenseUpdate, Displacement, GroupUpdate, Perturbation, Segment, require_finite


class Shadow(Perturbation):
    """Keeps theta in a second copy and writes the perturbed values into the parameters. Exact for any dtype and probe.

    For 16-bit parameters theta is float32, so that updates smaller than the parameters' last bit add up.
    """

    def __init__(self, arena: Arena, segments: Sequence[Segment], distribution: str) -> None:
        super().__init__(arena, segments, distribution)
        self.dtype = arena.dtype if arena.dtype.itemsize >= 4 else torch.float32
        self._theta = arena.flat.to(self.dtype, copy=True)
        self._moved = False

    @property
    def theta(self) -> Tensor:
        return self._theta

    @property
    def tensors(self) -> list[Tensor]:
        return [self._theta]

    def begin(self, eps: Sequence[float], probes_at_once: int = 1) -> list[float]:
        changed = sorted(self._changed_slots(), key=lambda slot: slot.offset)
        for slot in changed:  # a parameter equal to theta's cast (after loading a checkpoint) leaves theta as it is
            self.arena.take(slot, self.theta)
        if changed:
            require_finite(changed, self.arena.magnitudes(changed, self.theta))
            self._note_versions(written=False)
        return list(eps)

    def move(self, *to: Displacement) -> None:
        self._moved = True
        for number, (seed, alphas) in enumerate(to):
            for alpha, segment in zip(alphas, self.segments, strict=True):
                if number:
                    self.arena.each(segment, self._apply(alpha, seed))
                else:
                    self.arena.each(segment, partial(self._cast_probe, alpha, seed), self.theta)

    def _cast_probe(self, alpha: float, seed: int, perturbed: Tensor, theta: Tensor, *, offset: int) -> None:
        ops.apply_probe(theta, alpha, seed, offset=offset, out=perturbed, distribution=self.distribution)

    def leave(self) -> None:
        if self._moved:
            self.arena.write(self.theta)
            self._moved = False

    def update(self, seeds: Tensor, updates: Sequence[GroupUpdate]) -> None:
        for segment, u in zip(self.segments, updates, strict=True):
            kernel = partial(
                ops.accumulate_probes_,
                coeffs=u.coeffs,
                seeds=seeds,
                decay=u.decay,
                distribution=self.distribution,
            )
            self.arena.each_of(self.theta, segment, kernel)
        self._cast_theta()

    def update_densely(self, direction: Tensor, updates: Sequence[DenseUpdate]) -> None:
        for segment, u in zip(self.segments, updates, strict=True):
            self.arena.each_of(self.theta, segment, u, direction)
        self._cast_theta()

    def _cast_theta(self) -> None:
        self.arena.clear_padding(self.theta)
        self.arena.write(self.theta)
        self._moved = False
        self._note_versions(written=True)
