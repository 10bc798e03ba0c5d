"""A zero-order gradient is a small table of (seed, coefficient) rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import ops
from .distributions import check_distribution


class SeedGradient:
    """The gradient sum_i coeffs[i] * p(seeds[i]) over the flat parameter space, stored as its rows. Immutable.

    seeds: int64 [n], the seeds of the probes (64 bits as two's complement).
    coeffs: float64 [n], the coefficient of each probe, in units of loss per unit of parameter.
    distribution: name of the distribution of the probes' elements, from `zo_kernels.distributions`.

    Raises ValueError if the lengths differ, a coefficient is not finite or the distribution is unknown.
    """

    __slots__ = ("_coeffs", "_distribution", "_seeds")

    def __init__(
        self, seeds: Tensor | Sequence[int], coeffs: Tensor | Sequence[float], distribution: str = "rademacher"
    ) -> None:
        check_distribution(distribution)
        self._distribution = distribution
        self._seeds = torch.as_tensor(seeds, dtype=torch.int64, device="cpu").clone()
        self._coeffs = torch.as_tensor(coeffs, dtype=torch.float64, device="cpu").detach().clone()
        if self._seeds.dim() != 1 or self._seeds.shape != self._coeffs.shape:
            raise ValueError(
                "seeds and coeffs must be one-dimensional and of the same length, not "
                f"{tuple(self._seeds.shape)} and {tuple(self._coeffs.shape)}"
            )
        if not bool(self._coeffs.isfinite().all()):
            raise ValueError(
                "the coefficients of a gradient must be finite: leave out probes with a NaN or infinite loss"
            )

    @property
    def seeds(self) -> Tensor:
        """A copy of the seeds: int64 [n]."""
        return self._seeds.clone()

    @property
    def coeffs(self) -> Tensor:
        """A copy of the coefficients: float64 [n]."""
        return self._coeffs.clone()

    @property
    def distribution(self) -> str:
        """Distribution of the probes' elements."""
        return self._distribution

    def __len__(self) -> int:
        return len(self._seeds)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SeedGradient):
            return NotImplemented
        return (
            self._distribution == other._distribution
            and torch.equal(self._seeds, other._seeds)
            and torch.equal(self._coeffs, other._coeffs)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"SeedGradient({len(self)} {self._distribution} rows, |coeffs| {float(self._coeffs.norm()):.3g})"

    def scaled(self, factor: float) -> SeedGradient:
        """The gradient times `factor`."""
        return SeedGradient(self._seeds, self._coeffs * factor, self._distribution)

    def dense(self, numel: int, *, offset: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        """Writes out elements offset .. offset + numel of the gradient: a tensor [numel] of `dtype`."""
        zeros = torch.zeros(numel, dtype=dtype)
        return ops.accumulate_probes_(zeros, self._coeffs, self._seeds, offset=offset, distribution=self._distribution)
