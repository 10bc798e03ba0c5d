"""What a step saw."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..gradient import SeedGradient


@dataclass(frozen=True)
class StepReport:
    """What one step saw.

    step: its number, from 0. loss: mean of the finite losses. losses: float64, all of them, as the estimator took them
    (those of a central difference: [n, 2], at theta + eps p_i and theta - eps p_i; of several micro-batches: one more
    dimension in front). gradient: the estimate, before transforms. coeffs: float32 [probes], its coefficients in the
    order of the step's probes, NaN where one was left out; with the seeds, which follow from (run seed, step), all
    that `replay` needs. skipped: probes left out because a loss was NaN or infinite. lr, eps: of the first group.
    """

    step: int
    loss: float
    losses: Tensor
    gradient: SeedGradient
    coeffs: Tensor
    skipped: int
    lr: float
    eps: float
