"""Transforms that scale or clip the coefficients."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ..distributions import variance
from ..gradient import SeedGradient
from .base import Context, Transform, stateless


def scale(factor: float) -> Transform:
    """Multiplies the gradient by `factor`. Raises ValueError unless it is finite."""
    if not math.isfinite(factor):
        raise ValueError(f"scale takes a finite factor, not {factor}")
    return stateless(partial(_scale, factor))


def scale_by_lr() -> Transform:
    """Multiplies the gradient by the step's lr. Do not use it in an optimizer, which multiplies by lr itself."""
    return stateless(_scale_by_lr)


def clip_coeffs(limit: float) -> Transform:
    """Clamps each coefficient to [-limit, limit]. Raises ValueError unless `limit` is positive and finite."""
    _check_limit("clip_coeffs", limit)
    return stateless(partial(_clip_coeffs, limit))


def clip_norm(limit: float) -> Transform:
    """Scales the gradient down to the Euclidean norm `limit` if its norm is larger.

    The norm is estimated as sqrt(d * variance) * |coeffs|, without a pass over d. For n independent probes in d
    dimensions the relative error is O(n/sqrt d). Raises ValueError unless `limit` is positive and finite.
    """
    _check_limit("clip_norm", limit)
    return stateless(partial(_clip_norm, limit))


def _scale(factor: float, gradient: SeedGradient, context: Context) -> SeedGradient:
    return gradient.scaled(factor)


def _scale_by_lr(gradient: SeedGradient, context: Context) -> SeedGradient:
    return gradient.scaled(context.lr)


def _clip_coeffs(limit: float, gradient: SeedGradient, context: Context) -> SeedGradient:
    return with_coeffs(gradient, gradient.coeffs.clamp(-limit, limit))


def _clip_norm(limit: float, gradient: SeedGradient, context: Context) -> SeedGradient:
    length, unit = norm_and_direction(gradient.coeffs)
    allowed = limit / math.sqrt(context.numel * variance(gradient.distribution))
    return with_coeffs(gradient, unit * allowed) if length > allowed else gradient


def norm_and_direction(coeffs: Tensor) -> tuple[float, Tensor]:
    """The norm |coeffs| (infinity if it overflows) and the unit vector coeffs / |coeffs|, computed without underflow.

    If coeffs is zero or empty, the result is 0 and coeffs itself.
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
