"""The grid of in-place perturbation: why adding and subtracting a probe restores every bit.

A float32 has 24 significant bits, so all multiples of g = 2^-k up to 2^24 g are float32 numbers, and sums of two of
them within that range are exact. theta is kept on such a grid and perturbed by multiples of g: then adding alpha p and
subtracting it again gives theta, whatever came in between. float64 works alike with 53 bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import GridRangeError

_BITS = {torch.float32: 24, torch.float64: 53}

HEADROOM = 4.0
"""How many times its largest magnitude at the start a parameter group may grow."""
_SMALLEST_LIMIT = 4.0  # weights that start near zero grow to about 1 in any network


@dataclass(frozen=True)
class Grid:
    """Multiples of `spacing` (a power of two) of magnitude up to `limit`, all exact in the dtype it was made for."""

    spacing: float
    limit: float

    @classmethod
    def of_spacing(cls, spacing: float, dtype: torch.dtype) -> Grid:
        """Raises ValueError unless spacing is a power of two between 2^-100 and 2^100, TypeError for 16-bit dtypes."""
        if not (2.0**-100 <= spacing <= 2.0**100 and math.frexp(spacing)[0] == 0.5):
            raise ValueError(f"the grid must be a power of two between 2^-100 and 2^100, not {spacing}")
        if dtype not in _BITS:
            raise TypeError(
                f"{dtype} parameters can't be perturbed in place: with so few bits theta + eps*p rounds, and "
                "theta would drift; use mode='shadow'"
            )
        return cls(spacing, math.ldexp(spacing, _BITS[dtype]))

    @classmethod
    def for_range(cls, largest: float, dtype: torch.dtype) -> Grid:
        """The finest grid that leaves magnitudes up to `largest` their headroom."""
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
    """max |x| (0 for an empty tensor, NaN if x holds one), without a temporary of its size."""
    if x.numel() == 0:
        return 0.0
    low, high = torch.aminmax(x)
    return float(torch.maximum(-low, high))
