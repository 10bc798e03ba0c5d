"""Coefficients as integers, so that their sums do not depend on the order of summation."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

_LIMIT = 2**31
# Within these, 2^-shift and every sum times it are normal float32 numbers.
_MIN_SHIFT, _MAX_SHIFT = -96, 126


@np.errstate(over="ignore")
def quantise(coeffs: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int32], int]:
    """Integers q [n] and a shift s with coeffs ~ q * 2^-s: q = rint(coeffs * 2^s), s the largest with sum |q| < 2^31.

    s is at most 126 (coefficients of 2^-127 and below count as 0). Raises ValueError for coefficients that are not
    finite, or so large (their absolute sum reaches 2^127) that the sum would not be a float32.
    """
    total = float(np.abs(coeffs).sum())
    if not math.isfinite(total) and not np.isfinite(coeffs).all():
        at = int(np.flatnonzero(~np.isfinite(coeffs))[0])
        raise ValueError(f"coefficients must be finite, but coeffs[{at}] is {coeffs[at]}")
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
