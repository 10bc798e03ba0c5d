"""Transforms that compare the probes of a step with one another.

They count rows, so in a chain they come before momentum, which adds the rows of other steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..gradient import SeedGradient
from .base import Context, Transform, stateless
from .scaling import norm_and_direction, with_coeffs


def centred_rank() -> Transform:
    """Each coefficient's rank among them, mapped to [-1/2, 1/2] (ties get their mean), scaled to the norm they had.

    The ranks are those of Salimans et al., arXiv 1703.03864. Equal coefficients, or a single one, say nothing of each
    other: the result is zero.
    """

    def rule(gradient: SeedGradient, context: Context) -> SeedGradient:
        coeffs = gradient.coeffs
        length, _ = norm_and_direction(coeffs)
        _, unit = norm_and_direction(_centred_ranks(coeffs))
        return with_coeffs(gradient, unit * length)

    return stateless(rule)


def z_score() -> Transform:
    """(c_i - mean) / std over the n coefficients, divided by n: the mean over the probes of z_i p_i.

    std is the population's. Equal coefficients, or a single one, give zero. lr is then in units of the parameters,
    whatever the scale of the loss.
    """

    def rule(gradient: SeedGradient, context: Context) -> SeedGradient:
        _, unit = norm_and_direction(gradient.coeffs)
        if len(unit) == 0 or bool((unit == unit[0]).all()):  # else rounding of their mean would make the scores
            return with_coeffs(gradient, torch.zeros_like(unit))
        centred = unit - unit.mean()
        return with_coeffs(gradient, centred / centred.square().mean().sqrt() / len(unit))

    return stateless(rule)


def sign() -> Transform:
    """The sign of each of the n coefficients, divided by n: the mean over the probes of sign(c_i) p_i."""

    def rule(gradient: SeedGradient, context: Context) -> SeedGradient:
        return with_coeffs(gradient, gradient.coeffs.sign() / max(len(gradient), 1))

    return stateless(rule)


def _centred_ranks(values: Tensor) -> Tensor:
    """Ranks from -1/2 (the least) to 1/2, tied ones their mean; 0 for a single value: float64 [n]."""
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    last = len(values) - 1
    doubled = 2 * counts.cumsum(0) - counts - 1 - last  # in integers, so that ranks of -values are exactly -ranks
    return doubled[which].to(torch.float64) / max(2 * last, 1)
