"""Momentum over the gradients of the last steps. Its state is their rows, not a vector of the parameters' size."""

from __future__ import annotations

from functools import partial

import torch

from ..gradient import SeedGradient
from .base import Context, State, Transform, check_names


def momentum(beta: float, window: int) -> Transform:
    """Momentum over a window of W steps: g_t + beta g_{t-1} + ... + beta^{W-1} g_{t-W+1}.

    This is the momentum of torch.optim.SGD without the terms from W = window on. The result has the rows of the last W
    steps (fewer at first), oldest first, so an update reads up to W times as many seeds. State: seeds int64 [rows] and
    coeffs float64 [rows], already weighted, of the last steps, and rows int64 [steps], their numbers of rows. Raises
    ValueError unless beta is in [0, 1] and window is an integer in [1, 2^31).
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"momentum takes a beta in [0, 1], not {beta}")
    if not isinstance(window, int) or not 1 <= window < 2**31:
        raise ValueError(f"momentum takes an integer from 1 to 2^31 - 1 as its window, not {window!r}")
    return Transform(_init, partial(_update, beta, window))


def _init() -> State:
    integers = torch.empty(0, dtype=torch.int64)
    return {"seeds": integers, "coeffs": torch.empty(0, dtype=torch.float64), "rows": integers.clone()}


def _update(
    beta: float, window: int, gradient: SeedGradient, state: State, context: Context
) -> tuple[SeedGradient, State]:
    check_names(state, {"seeds", "coeffs", "rows"})
    kept = state["rows"][-(window - 1) :] if window > 1 else state["rows"][:0]
    start = len(state["seeds"]) - int(kept.sum())
    rows = torch.cat([kept, torch.tensor([len(gradient)])])
    seeds = torch.cat([state["seeds"][start:], gradient.seeds])
    coeffs = torch.cat([state["coeffs"][start:] * beta, gradient.coeffs])
    return SeedGradient(seeds, coeffs, gradient.distribution), {"seeds": seeds, "coeffs": coeffs, "rows": rows}
