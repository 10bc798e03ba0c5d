"""The central-difference estimator."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .base import Estimator, Evaluator, Losses, check_losses


class CentralDifference(Estimator):
    """Central-difference random gradient estimation, CD-RGE: Chaubard and Kochenderfer, arXiv 2505.17852, eq. 2.

        slope_i = (L(theta + eps p_i) - L(theta - eps p_i)) / (2 eps)

    Takes 2n forward passes; losses [n, 2]. The error of a slope is of order eps^2, and zero on a quadratic.
    """

    name: ClassVar[str] = "cd"

    def forwards(self, probes: int) -> int:
        return 2 * probes

    def measure(self, evaluate: Evaluator, seeds: Tensor, eps: float) -> Losses:
        return Losses(check_losses(evaluate.pairs(seeds, eps), len(seeds), 2))

    def slopes(self, measured: Losses, eps: float) -> Tensor:
        return central_slopes(measured.own, eps)


def central_slopes(pairs: Tensor, eps: float) -> Tensor:
    """(L+ - L-) / (2 eps), float64 [n], for losses with L+ and L- in the first two columns."""
    return (pairs[:, 0] - pairs[:, 1]) / 2 / eps
