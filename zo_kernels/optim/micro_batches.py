"""One estimate from those of several micro-batches: the mean of the ones that agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..errors import DivergenceError
from ..estimators import Estimate
from ..transforms.agreement import agree


def combine_estimates(estimates: Sequence[Estimate], max_cosine_distance: float) -> Estimate:
    """The mean of the micro-batches' estimates that agree (`zo_kernels.transforms.agreement`), with all their losses.

    estimates: along the same probes, [m]. A probe that one of them left out is left out.

    Raises DivergenceError if no probe is left, and what `agree` raises.
    """
    valid = torch.stack([~estimate.coeffs.isnan() for estimate in estimates])
    shared = valid.all(dim=0)
    if not bool(shared.any()):
        raise DivergenceError("no probe has finite losses on all micro-batches: lower lr or eps, or check the loss")
    micro = torch.stack(  # each is a mean over all probes of its own
        [
            estimate.coeffs[shared] * int(of_estimate.sum()) / int(shared.sum())
            for estimate, of_estimate in zip(estimates, valid, strict=True)
        ]
    )
    mean, _ = agree(micro, max_cosine_distance)
    coeffs = torch.full_like(estimates[0].coeffs, math.nan)
    coeffs[shared] = mean
    return replace(estimates[0], coeffs=coeffs, losses=torch.stack([estimate.losses for estimate in estimates]))
