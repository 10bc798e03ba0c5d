"""The grid of in-place perturbation, on which adding and subtracting a probe restores every bit.

A float32 number has 24 significant bits. So all multiples of g = 2^-k up to 2^24 g are float32 numbers, and the sum of
two of them is exact if it is in that range. theta is kept on this grid and perturbed by multiples of g. Then adding
alpha p and later subtracting it gives back theta. float64 works the same way with 53 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import GridRangeError

_BITS = {torch.float32: 24, torch.float64: 53}

HEADROOM = 4.0
"""Factor by which the largest magnitude of a parameter group may grow from its value at the start."""
_SMALLEST_LIMIT = 4.0  # weights that start near zero grow to about 1 in any network


@dataclass(frozen=True)
class Grid:
    """The multiples of `spacing`, a power of two, of magnitude up to `limit`. All are exact in the grid's dtype."""

    spacing: float
    limit: float

    @classmethod
    def of_spacing(cls, spacing: float, dtype: torch.dtype) -> Grid:
        """The grid with this spacing.

        Raises ValueError unless spacing is a power of two between 2^-100 and 2^100, and TypeError for 16-bit dtypes.
        """
        if not (2.0**-100 <= spacing <= 2.0**100 and math.frexp(spacing)[0] == 0.5):
            raise ValueError(f"the grid must be a power of two between 2^-100 and 2^100, not {spacing}")
        if dtype not in _BITS:
            raise TypeError(
                f"{dtype} parameters can't be perturbed in place, because theta + eps*p would be rounded and theta "
                "would drift: use mode='shadow'"
            )
        return cls(spacing, math.ldexp(spacing, _BITS[dtype]))

    @classmethod
    def for_range(cls, largest: float, dtype: torch.dtype) -> Grid:
        """The finest grid on which magnitudes up to `largest` may grow by the factor HEADROOM."""
        limit = 2.0 ** math.ceil(math.log2(max(_SMALLEST_LIMIT, HEADROOM * largest)))
        return cls.of_spacing(math.ldexp(limit, -_BITS.get(dtype, 0)), dtype)

    def round_eps(self, eps: float) -> float:
        """The multiple of the spacing nearest to eps. Raises GridRangeError if that is 0."""
        rounded = round(eps / self.spacing) * self.spacing
        if rounded == 0.0:
            raise GridRangeError(
                f"eps {eps:g} is below half the grid's spacing {self.spacing:g}: use a larger eps, a finer grid or "
                "mode='shadow'"
            )
        return rounded


def largest_magnitude(x: Tensor) -> float:
    """max |x|, without a temporary tensor of the size of x: 0 if x is empty, NaN if an element is NaN."""
    if x.numel() == 0:
        return 0.0
    low, high = torch.aminmax(x)
    return float(torch.maximum(-low, high))
