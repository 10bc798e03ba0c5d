"""SPSA with curvature, which divides central-difference slopes by a power of the measured curvature.

    slope_i = (L(theta + eps v_i) - L(theta - eps v_i)) / (2 eps) / max(|c_i|^saturation, floor)

c_i is the curvature of the loss along v_i (1.5-SPSA), or between v_i and a second probe u_i (2-SPSA). The division
preconditions the estimate: it estimates the gradient itself only where max(...) is 1. c_i is proportional to the
variance of the probes' elements, so it is smaller for sparse probes.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..philox import Stream, philox4x32_10
from .base import Estimator, Evaluator, Losses, check_losses
from .central import central_slopes

_LAST = 0xFFFFFFFF  # `philox.probe_seeds` never reaches this step and probe


class _Saturating(Estimator):
    """Base class of both. saturation: exponent of the curvature, not negative. floor: smallest divisor, positive."""

    def __init__(self, saturation: float = 0.1, floor: float = 1.0) -> None:
        if not (math.isfinite(saturation) and saturation >= 0):
            raise ValueError(f"saturation must be finite and not negative, not {saturation}")
        if not (math.isfinite(floor) and floor > 0):
            raise ValueError(f"floor must be positive and finite, not {floor}")
        self.saturation, self.floor = saturation, floor

    def _precondition(self, slopes: Tensor, curvatures: Tensor) -> Tensor:
        return slopes / curvatures.abs().pow(self.saturation).clamp(min=self.floor)


class SPSA15(_Saturating):
    """1.5-SPSA from Chaubard and Kochenderfer's public code (saturation is its "saturating alpha", floor its "lambda").

        c_i = (L(theta + eps v_i) - 2 L(theta) + L(theta - eps v_i)) / eps^2

    On a quadratic c_i is v_i.H v_i. Takes 2n + 1 forward passes; losses [2n + 1]: L+ and L- of each probe, then
    L(theta). Raises ValueError if saturation is negative or floor is not positive.
    """

    name: ClassVar[str] = "1.5-spsa"

    def forwards(self, probes: int) -> int:
        return 2 * probes + 1

    def measure(self, evaluate: Evaluator, seeds: Tensor, eps: float) -> Losses:
        return Losses(check_losses(evaluate.pairs(seeds, eps), len(seeds), 2), float(evaluate.clean()))

    def slopes(self, measured: Losses, eps: float) -> Tensor:
        assert measured.clean is not None
        rises = measured.own - measured.clean
        return self._precondition(central_slopes(measured.own, eps), rises.sum(dim=1) / eps / eps)


class SPSA2(_Saturating):
    """2-SPSA after Spall, IEEE Transactions on Automatic Control 45, 2000. A second probe u_i measures the curvature.

        c_i = (L(++) - L(+-) - L(-+) + L(--)) / (4 eps^2), L(+-) = L(theta + eps v_i - eps u_i)

    On a quadratic c_i is v_i.H u_i. `second_seeds` gives the seed of u_i. Takes 6n forward passes; losses [n, 6]: L+,
    L-, L(++), L(+-), L(-+), L(--). Raises ValueError if saturation is negative or floor is not positive.
    """

    name: ClassVar[str] = "2-spsa"
    probes_at_once: ClassVar[int] = 2

    def forwards(self, probes: int) -> int:
        return 6 * probes

    def measure(self, evaluate: Evaluator, seeds: Tensor, eps: float) -> Losses:
        pairs = check_losses(evaluate.pairs(seeds, eps), len(seeds), 2)
        corners = check_losses(evaluate.corners(seeds, second_seeds(seeds), eps), len(seeds), 2, 2)
        return Losses(torch.cat([pairs, corners.flatten(start_dim=1)], dim=1))

    def slopes(self, measured: Losses, eps: float) -> Tensor:
        both, first, second, neither = measured.own[:, 2:].unbind(dim=1)
        curvatures = ((both - first) - (second - neither)) / 4 / eps / eps
        return self._precondition(central_slopes(measured.own, eps), curvatures)


def second_seeds(seeds: Tensor) -> Tensor:
    """The seed of each second probe u_i, int64 [n]. It depends only on the seed of v_i, and differs from it.

    It is seed xor (w | 1), where w is words 0 and 1 of Philox4x32-10(counter=(2^32 - 1, 2^32 - 1, Stream.SEEDS, 2^32 -
    1), key=seed). `zo_kernels.philox.probe_seeds` does not use this counter.
    """
    key = seeds.cpu().numpy().view(np.uint64)
    counter = np.array([_LAST, _LAST, Stream.SEEDS, _LAST], np.uint64)
    words = philox4x32_10(counter, np.stack([key & np.uint64(_LAST), key >> np.uint64(32)], axis=-1)).astype(np.uint64)
    odd = words[:, 0] | (words[:, 1] << np.uint64(32)) | np.uint64(1)
    return torch.from_numpy((key ^ odd).view(np.int64))
