"""The op that adds any number of probes in one pass, `accumulate_probes_`, and the quantisation of its coefficients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..backends import backend_for
from ..backends.base import Update
from ..distributions import is_exact_in_place
from .checks import (
    check_call,
    check_probe,
    check_rows,
    check_tensor,
    check_update,
    check_writable,
    seed_to_int64,
    seeds_to_tensor,
)
from .library import register

_LIMIT = 2**31
# Within these, 2^-shift and every sum times it are normal float32 numbers.
_MIN_SHIFT, _MAX_SHIFT = -96, 126

_LARGEST_SUM = 2.0**124  # of normal and uniform probes: no element reaches 8, so sums stay float32 numbers


@np.errstate(over="ignore")
def quantise(coeffs: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int32], int]:
    """Turns coefficients into integers, so that their sums do not depend on the order of summation.

    Returns q int32 [n] and a shift s with coeffs ~ q * 2^-s: q = rint(coeffs * 2^s), with the largest s for which
    sum |q| < 2^31. s is at most 126 (coefficients of 2^-127 and below count as 0).

    Raises ValueError for coefficients that are not finite, or so large (their absolute sum reaches 2^127) that the sum
    would not be a float32.
    """
    total = float(np.abs(coeffs).sum())
    if not math.isfinite(total):
        _check_finite(coeffs)
    if total == 0.0:
        return np.zeros(len(coeffs), np.int32), 0
    # Rounding takes at most n/2 off the sum, so the right shift is below this one, and not far.
    shift = min(_MAX_SHIFT, 1 + math.frexp(_LIMIT + len(coeffs) / 2)[1] - math.frexp(total)[1])
    while shift >= _MIN_SHIFT:
        scaled = np.rint(np.ldexp(coeffs, shift))
        if np.abs(scaled).sum() < _LIMIT:
            return scaled.astype(np.int32), shift
        shift -= 1
    largest = float(np.abs(coeffs).max())
    raise ValueError(f"coefficients are too large for float32: their absolute sum reaches 2^127 (largest: {largest:g})")


def _check_finite(coeffs: npt.NDArray[np.float64]) -> None:
    if not np.isfinite(coeffs).all():
        at = int(np.flatnonzero(~np.isfinite(coeffs))[0])
        raise ValueError(f"coefficients must be finite, but coeffs[{at}] is {coeffs[at]}")


def factors_of(
    coeffs: npt.NDArray[np.float64], distribution: str
) -> tuple[npt.NDArray[np.int32] | npt.NDArray[np.float64], int]:
    """What `Backend.accumulate_probes` takes: integers and a shift where sums can be exact, else `coeffs` and 0.

    Raises ValueError where a sum might not be a finite float32.
    """
    if distribution == "rademacher" or is_exact_in_place(distribution):
        return quantise(coeffs)
    _check_finite(coeffs)
    with np.errstate(over="ignore"):
        total = float(np.abs(coeffs).sum())
    if total >= _LARGEST_SUM:
        raise ValueError(f"coefficients are too large for float32: their absolute sum is {total:g}, not below 2^124")
    return coeffs, 0


def _accumulate_fake(
    x: Tensor,
    coeffs: Tensor,
    seeds: Tensor,
    *,
    offset: int,
    decay: float,
    grid: float,
    undo_alpha: float,
    undo_seed: int,
    distribution: str = "rademacher",
    rounding_seed: int | None = None,
) -> None:
    check_tensor(x)
    check_rows(x, coeffs, seeds)
    check_probe(x.numel(), offset, distribution)


def _accumulate(
    x: Tensor,
    coeffs: Tensor,
    seeds: Tensor,
    *,
    offset: int,
    decay: float,
    grid: float,
    undo_alpha: float,
    undo_seed: int,
    distribution: str = "rademacher",
    rounding_seed: int | None = None,
) -> None:
    check_tensor(x)
    check_rows(x, coeffs, seeds)
    check_probe(x.numel(), offset, distribution)
    check_update(decay, grid, undo_alpha, rounding_seed, x.dtype)
    factors, shift = factors_of(coeffs.contiguous().numpy(force=True), distribution)
    rows = seeds.contiguous().numpy(force=True)
    update = Update(undo_alpha, undo_seed, decay, grid, rounding_seed)
    backend_for(x.device.type).accumulate_probes(x, factors, shift, rows, offset, update, distribution)
    increment_version(x)


_accumulate_op = register(
    "accumulate_probes_(Tensor(a!) x, Tensor coeffs, Tensor seeds, *, SymInt offset, float decay, float grid, "
    'float undo_alpha, SymInt undo_seed, str distribution="rademacher", SymInt? rounding_seed=None) -> ()',
    _accumulate,
    _accumulate_fake,
)


def accumulate_probes_(
    x: Tensor,
    coeffs: Tensor | Sequence[float] | npt.NDArray[np.float64],
    seeds: Tensor | Sequence[int] | npt.NDArray[np.int64],
    *,
    offset: int = 0,
    decay: float = 1.0,
    grid: float = 0.0,
    undo_alpha: float = 0.0,
    undo_seed: int = 0,
    distribution: str = "rademacher",
    rounding_seed: int | None = None,
) -> Tensor:
    """Adds sum_i coeffs[i] * p(seeds[i]) to x, with one read and one write of x for all seeds. Returns x.

    coeffs [n] and seeds [n] are read on the host. The coefficients of Rademacher and sparse probes are quantised to
    integer multiples of a common power of two (about 2^-31 of their absolute sum), so the sum of an element is exact
    and does not depend on the order of the rows. Normal and uniform probes are summed in float64, in the order of the
    rows.

    The other options are what an optimizer step does in the same pass. For each element, each operation rounded:

        v = x;  v += undo_alpha * p(undo_seed);  v *= decay;  v += sum;  v = round(v / grid) * grid;  x = v

    grid is 0 (no rounding) or a power of two. With `rounding_seed`, which is for bfloat16 and float16, the last step
    rounds up or down at random, so that the result is right in the mean (docs/contract.md); the random bits of an
    element depend on the seed and on its number in the flat parameter space alone.
    """
    check_writable(x)
    check_call(offset, distribution)
    if isinstance(coeffs, np.ndarray):
        coeffs = torch.from_numpy(np.array(coeffs, np.float64, order="C"))  # a copy: torch knows no negative strides
    elif not isinstance(coeffs, Tensor):
        try:
            coeffs = torch.tensor(coeffs, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"coeffs must be numbers: {error}") from error
    if coeffs.is_complex():
        raise TypeError("coeffs must be real numbers, not complex ones")
    _accumulate_op(
        x,
        coeffs.to(torch.float64),
        seeds_to_tensor(seeds),
        offset=offset,
        decay=decay,
        grid=grid,
        undo_alpha=undo_alpha,
        undo_seed=seed_to_int64(undo_seed),
        distribution=distribution,
        rounding_seed=None if rounding_seed is None else seed_to_int64(rounding_seed),
    )
    return x
