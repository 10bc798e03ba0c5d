"""Transforms that make the rows larger or smaller."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..distributions import variance
from ..gradient import SeedGradient
from .base import Context, Transform, stateless


def scale(factor: float) -> Transform:
    """The gradient times `factor`. Raises ValueError unless it is finite."""
    if not math.isfinite(factor):
        raise ValueError(f"scale takes a finite factor, not {factor}")
    return stateless(lambda gradient, context: gradient.scaled(factor))


def scale_by_lr() -> Transform:
    """The gradient times the step's lr: for those who apply it themselves, since optimizers multiply by lr."""
    return stateless(lambda gradient, context: gradient.scaled(context.lr))


def clip_coeffs(limit: float) -> Transform:
    """Each coefficient within -limit and limit. Raises ValueError unless `limit` is positive and finite."""
    _check_limit("clip_coeffs", limit)
    return stateless(lambda gradient, context: with_coeffs(gradient, gradient.coeffs.clamp(-limit, limit)))


def clip_norm(limit: float) -> Transform:
    """The gradient scaled down to a Euclidean norm of `limit` where it is longer.

    The norm is sqrt(d * variance) * |coeffs|: that of n independent probes in d dimensions up to a relative O(n/sqrt d)
    for their overlap, without a pass over d. Raises ValueError unless `limit` is positive and finite.
    """
    _check_limit("clip_norm", limit)

    def rule(gradient: SeedGradient, context: Context) -> SeedGradient:
        length, unit = norm_and_direction(gradient.coeffs)
        allowed = limit / math.sqrt(context.numel * variance(gradient.distribution))
        return with_coeffs(gradient, unit * allowed) if length > allowed else gradient

    return stateless(rule)


def norm_and_direction(coeffs: Tensor) -> tuple[float, Tensor]:
    """|coeffs| (infinity where that overflows) and coeffs / |coeffs|, whose squares neither overflow nor underflow.

    0 and the coefficients themselves where all are zero or there is none.
    """
    largest = float(coeffs.abs().max()) if len(coeffs) else 0.0
    if largest == 0.0:
        return 0.0, coeffs
    scaled = coeffs / largest
    length = torch.linalg.vector_norm(scaled)
    return largest * float(length), scaled / length


def with_coeffs(gradient: SeedGradient, coeffs: Tensor) -> SeedGradient:
    """The gradient with other coefficients of the same probes."""
    return SeedGradient(gradient.seeds, coeffs, gradient.distribution)


def _check_limit(name: str, limit: float) -> None:
    if not (math.isfinite(limit) and limit > 0):
        raise ValueError(f"{name} takes a positive and finite limit, not {limit}")
