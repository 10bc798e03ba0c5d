"""The usual torch code of zero-order training, the rival of the kernels: a probe is drawn anew wherever it is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def add_probe_(x: Tensor, scratch: Tensor, alpha: float, seed: int, generator: torch.Generator) -> None:
    """x += alpha * p by bernoulli_, mul_, sub_, add_ (the paper's and MeZO's way)."""
    generator.manual_seed(seed)
    scratch.bernoulli_(0.5, generator=generator).mul_(2.0).sub_(1.0)
    x.add_(scratch, alpha=alpha)


def accumulate(
    x: Tensor, scratch: Tensor, coeffs: Iterable[float], seeds: Iterable[int], generator: torch.Generator
) -> None:
    """x += sum_i coeffs[i] * p_i, a probe at a time."""
    for coeff, seed in zip(coeffs, seeds, strict=True):
        add_probe_(x, scratch, coeff, seed, generator)


def step(
    x: Tensor, scratch: Tensor, loss: Callable[[], float], eps: float, seeds: list[int], generator: torch.Generator
) -> None:
    """A CD-RGE step: to theta + eps p, to theta - eps p, back, and after all probes the update: four draws a probe."""
    coeffs = []
    for seed in seeds:
        add_probe_(x, scratch, eps, seed, generator)
        plus = loss()
        add_probe_(x, scratch, -2 * eps, seed, generator)
        minus = loss()
        add_probe_(x, scratch, eps, seed, generator)
        coeffs.append(-(plus - minus) / (2 * len(seeds)))
    accumulate(x, scratch, coeffs, seeds, generator)
