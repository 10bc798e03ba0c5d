"""Transforms that compare the coefficients of a step with one another.

In a chain put them before momentum, which adds the rows of other steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..gradient import SeedGradient
from .base import Context, Transform, stateless
from .scaling import norm_and_direction, with_coeffs


def centred_rank() -> Transform:
    """Replaces the coefficients by their centred ranks in [-1/2, 1/2], scaled to the norm of the coefficients.

    Ties get the mean of their ranks. If there is a single coefficient, or all are equal, the result is zero. The ranks
    are those of Salimans et al., arXiv 1703.03864.
    """
    return stateless(_centred_rank)


def _centred_rank(gradient: SeedGradient, context: Context) -> SeedGradient:
    coeffs = gradient.coeffs
    length, _ = norm_and_direction(coeffs)
    _, unit = norm_and_direction(_centred_ranks(coeffs))
    return with_coeffs(gradient, unit * length)


def z_score() -> Transform:
    """Replaces the n coefficients by their z-scores divided by n, so that the gradient is the mean of z_i p_i.

    z_i = (c_i - mean) / std, with the standard deviation of the population (not n - 1). If there is a single
    coefficient, or all are equal, the result is zero. lr is then in units of the parameters, for any scale of the loss.
    """
    return stateless(_z_score)


def _z_score(gradient: SeedGradient, context: Context) -> SeedGradient:
    _, unit = norm_and_direction(gradient.coeffs)
    if len(unit) == 0 or bool((unit == unit[0]).all()):  # the scores would be rounding errors of the mean
        return with_coeffs(gradient, torch.zeros_like(unit))
    centred = unit - unit.mean()
    return with_coeffs(gradient, centred / centred.square().mean().sqrt() / len(unit))


def sign() -> Transform:
    """Replaces the n coefficients by their signs divided by n, so that the gradient is the mean of sign(c_i) p_i."""
    return stateless(_sign)


def _sign(gradient: SeedGradient, context: Context) -> SeedGradient:
    return with_coeffs(gradient, gradient.coeffs.sign() / max(len(gradient), 1))


def _centred_ranks(values: Tensor) -> Tensor:
    """Ranks from -1/2 (smallest value) to 1/2 as float64 [n]. Ties get their mean rank, a single value 0."""
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    last = len(values) - 1
    doubled = 2 * counts.cumsum(0) - counts - 1 - last  # in integers, so that ranks of -values are exactly -ranks
    return doubled[which].to(torch.float64) / max(2 * last, 1)
