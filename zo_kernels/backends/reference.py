"""The ops in plain NumPy and torch: slow, on any device, and the ground truth of every other backend.

Arithmetic (the contract): elements are computed in float64 for float64 tensors and in float32 otherwise, each operation
rounded to nearest even, and cast once to the result's dtype (float64 to a 16-bit dtype by way of float32, as torch
casts). Sums of Rademacher and sparse probes are exact integers, those of other distributions float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..distributions import draw
from ..philox import rounding_bits
from .activity.problem import ActivityGradient, ActivityProblem
from .activity.reference import activity
from .base import Backend, RecurrentWeights, Update
from .dnc import reference as dnc
from .dnc.weights import DncWeights
from .recurrent import reference

_CHUNK = 1 << 20  # elements at a time, to keep the materialised probes small


def _compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _chunks(x: Tensor, offset: int) -> Iterator[tuple[slice, int]]:
    """Yields parts of x [numel], and where each begins in the flat parameter space."""
    for start in range(0, x.numel(), _CHUNK):
        yield slice(start, min(start + _CHUNK, x.numel())), offset + start


def _draw(like: Tensor, seed: int, offset: int, distribution: str = "rademacher") -> Tensor:
    """Returns p(seed) in the compute dtype of `like`, with its number of elements, on its device."""
    return torch.from_numpy(draw(distribution, like.numel(), seed, offset)).to(like.device, _compute_dtype(like))


def round_at_random(v: Tensor, random: npt.NDArray[np.uint16], dtype: torch.dtype) -> Tensor:
    """Rounds float32 v [n] up or down to a number of `dtype`, bfloat16 or float16, by 16 random bits for each element.

    The magnitude is rounded up if its distance from the next smaller number of `dtype`, in 2^-16 of the spacing there,
    is at least 2^16 - random: in the mean over `random` the result is v. What is smaller than 2^-16 of the smallest
    spacing counts as 0. Infinite values and NaN stay as they are.
    """
    r = torch.from_numpy(random.astype(np.int32)).to(v.device)
    bits = v.view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    if dtype == torch.bfloat16:
        rounded = bits + r & ~0xFFFF
    else:
        is_small = magnitude < 0x38800000  # 2^-14, below which float16's numbers are multiples of 2^-24
        fixed = torch.where(is_small, v.abs(), 0.0) * 2.0**40
        low = ((fixed.to(torch.int32) + r >> 16) * 2.0**-24).view(torch.int32)
        rounded = torch.where(is_small, low, magnitude + (r >> 3) & ~0x1FFF) | bits & ~0x7FFFFFFF
    return torch.where(magnitude < 0x7F800000, rounded, bits).view(torch.float32)


class ReferenceBackend(Backend):
    """See `zo_kernels.backends.base.Backend` for what each method takes."""

    name = "reference"
    device_types: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def unavailable(self) -> str | None:
        return None

    def probe(self, out: Tensor, seed: int, offset: int, distribution: str) -> None:
        flat = out.view(-1)
        for part, j in _chunks(flat, offset):
            flat[part] = _draw(flat[part], seed, j, distribution)

    def apply_probe(self, x: Tensor, out: Tensor, alpha: float, seed: int, offset: int, distribution: str) -> None:
        flat, result, compute = x.view(-1), out.view(-1), _compute_dtype(x)
        step = torch.tensor(alpha, dtype=compute, device=x.device)
        for part, j in _chunks(flat, offset):
            result[part] = flat[part].to(compute) + step * _draw(flat[part], seed, j, distribution)

    def swap_probe(self, x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, offset: int) -> None:
        flat, compute = x.view(-1), _compute_dtype(x)
        leave = torch.tensor(alpha, dtype=compute, device=x.device)
        enter = torch.tensor(next_alpha, dtype=compute, device=x.device)
        for part, j in _chunks(flat, offset):
            left = flat[part].to(compute) + leave * _draw(flat[part], seed, j)
            flat[part] = left + enter * _draw(flat[part], next_seed, j)

    def accumulate_probes(
        self,
        x: Tensor,
        coeffs: npt.NDArray[np.int32] | npt.NDArray[np.float64],
        shift: int,
        seeds: npt.NDArray[np.int64],
        offset: int,
        update: Update,
        distribution: str,
    ) -> None:
        flat, compute = x.view(-1), _compute_dtype(x)
        scale, undo, decay = (
            torch.tensor(value, dtype=compute, device=x.device)
            for value in (2.0**-shift, update.undo_alpha, update.decay)
        )
        wide = np.int64 if coeffs.dtype == np.int32 else np.float64
        for part, j in _chunks(flat, offset):
            numel = flat[part].numel()
            total = np.zeros(numel, wide)
            for c, seed in zip(coeffs.tolist(), seeds.tolist(), strict=True):
                total += c * draw(distribution, numel, seed, j).astype(wide)
            v = flat[part].to(compute)
            if update.undo_alpha != 0.0:
                v = v + undo * _draw(flat[part], update.undo_seed, j, distribution)
            v = v * decay
            v = v + torch.from_numpy(total).to(x.device, compute) * scale
            if update.grid != 0.0:
                v = torch.round(v * (1.0 / update.grid)) * update.grid
            if update.rounding_seed is not None:
                v = round_at_random(v, rounding_bits(numel, update.rounding_seed, j), x.dtype)
            flat[part] = v.to(x.dtype)

    def recurrent_nats(
        self,
        weights: RecurrentWeights,
        tokens: Tensor,
        targets: Tensor,
        seeds: npt.NDArray[np.int64],
        eps: float,
        states: Sequence[Tensor],
        precision: str,
    ) -> Tensor:
        return reference.recurrent_nats(weights, tokens, targets, seeds, eps, states)

    def recurrent_score(
        self, weights: RecurrentWeights, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        return reference.recurrent_score(weights, tokens, targets, states)

    def recurrent_logits(self, weights: RecurrentWeights, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
        return reference.recurrent_logits(weights, tokens, states)

    def recurrent_activity(self, problem: ActivityProblem) -> ActivityGradient:
        return activity(problem)

    def dnc_nats(
        self,
        weights: DncWeights,
        tokens: Tensor,
        targets: Tensor,
        seeds: npt.NDArray[np.int64],
        eps: float,
        states: Sequence[Tensor],
    ) -> Tensor:
        return dnc.dnc_nats(weights, tokens, targets, seeds, eps, states)

    def dnc_score(
        self, weights: DncWeights, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        return dnc.dnc_score(weights, tokens, targets, states)
