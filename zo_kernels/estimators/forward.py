"""Forward-difference estimators, which take one or two losses per probe and one clean loss L(theta) for all."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .base import Estimator, Evaluator, Losses, check_losses


class ForwardDifference(Estimator):
    """Forward differences.

        slope_i = (L(theta + eps p_i) - L(theta)) / eps

    Takes n + 1 forward passes; losses [n + 1], L(theta) last. The error of a slope is eps/2 p_i.H p_i to first order in
    eps. That error adds variance but no bias, since p_i and -p_i are equally likely; the bias is of order eps^2.
    """

    name: ClassVar[str] = "fd"

    def forwards(self, probes: int) -> int:
        return probes + 1

    def measure(self, evaluate: Evaluator, seeds: Tensor, eps: float) -> Losses:
        return Losses(check_losses(evaluate.ahead(seeds, eps), len(seeds))[:, None], float(evaluate.clean()))

    def slopes(self, measured: Losses, eps: float) -> Tensor:
        assert measured.clean is not None
        return (measured.own[:, 0] - measured.clean) / eps


class AntitheticDifference(Estimator):
    """Forward differences along p_i and along -p_i: Chaubard and Kochenderfer, arXiv 2505.17852, appendix C.

        slope_i = ((L(theta + eps p_i) - L(theta)) / eps - (L(theta - eps p_i) - L(theta)) / eps) / 2

    Takes 2n + 1 forward passes; losses [2n + 1]: L+ and L- of each probe, then L(theta). L(theta) cancels, so up to
    rounding this is the central difference.
    """

    name: ClassVar[str] = "antithetic"

    def forwards(self, probes: int) -> int:
        return 2 * probes + 1

    def measure(self, evaluate: Evaluator, seeds: Tensor, eps: float) -> Losses:
        return Losses(check_losses(evaluate.pairs(seeds, eps), len(seeds), 2), float(evaluate.clean()))

    def slopes(self, measured: Losses, eps: float) -> Tensor:
        assert measured.clean is not None
        along, against = ((measured.own - measured.clean) / eps).unbind(dim=1)
        return (along - against) / 2
