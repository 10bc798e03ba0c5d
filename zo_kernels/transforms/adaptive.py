"""Transforms that adapt the size of a step to the losses, with a scalar or nothing as their state."""

from __future__ import annotations

import math
from functools import partial

import torch

from ..distributions import variance
from ..gradient import SeedGradient
from .base import Context, State, Transform, check_names, stateless
from .scaling import norm_and_direction, with_coeffs

_ZETA = 1e-8
"""What MEAZO adds to its denominator, in units of the slope."""


def fzoo() -> Transform:
    """Divides the gradient by the standard deviation of the probes' losses.

    The losses are those at theta + eps p_i, taken from their slopes: L_i = L + eps slope_i, with n - 1 in the variance.
    With the estimator `fd`, which measures these losses, this is the update of FZOO (Dang et al., arXiv 2506.09034).
    Since the deviation is about eps times the norm of the gradient, lr is in units of eps times the parameters, for any
    scale of the loss. If there is a single coefficient, or all are equal, the result is zero.
    """
    return stateless(_fzoo)


def _fzoo(gradient: SeedGradient, context: Context) -> SeedGradient:
    _, unit = norm_and_direction(gradient.coeffs)
    if len(unit) < 2 or context.eps == 0 or bool((unit == unit[0]).all()):
        return with_coeffs(gradient, torch.zeros_like(unit))
    values = unit.tolist()
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return with_coeffs(gradient, unit / (context.eps * len(values) * variance(gradient.distribution) * deviation))


def meazo(beta: float) -> Transform:
    """Divides the gradient by a running root mean square of the mean slope along the probes of a step.

    v_t = beta v_{t-1} + (1 - beta) g_t^2, where g_t is the mean slope. The gradient is divided by sqrt(v_t / (1 -
    beta^t)) + 1e-8, with t = 1 at the first step: MEAZO (Dbouk et al., arXiv 2605.03869). A step without rows does not
    count. State: root float64 [1], sqrt(v), and steps int64 [1]. Raises ValueError unless beta is in [0, 1).
    """
    if not 0 <= beta < 1:
        raise ValueError(f"meazo takes a beta in [0, 1), not {beta}")
    return Transform(_init, partial(_meazo, beta))


def _init() -> State:
    return {"root": torch.zeros(1, dtype=torch.float64), "steps": torch.zeros(1, dtype=torch.int64)}


def _meazo(beta: float, gradient: SeedGradient, state: State, context: Context) -> tuple[SeedGradient, State]:
    check_names(state, {"root", "steps"})
    if len(gradient) == 0:
        return gradient, {name: value.clone() for name, value in state.items()}
    length, unit = norm_and_direction(gradient.coeffs)
    mean_slope = math.fsum(unit.tolist()) * length * variance(gradient.distribution)
    root = math.hypot(math.sqrt(beta) * float(state["root"]), math.sqrt(1 - beta) * mean_slope)
    steps = int(state["steps"]) + 1
    divisor = root / math.sqrt(1 - beta**steps) + _ZETA
    following = {"root": torch.tensor([root], dtype=torch.float64), "steps": torch.tensor([steps])}
    return with_coeffs(gradient, gradient.coeffs / divisor), following
