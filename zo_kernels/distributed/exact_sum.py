"""Sums of tensors that do not depend on the order, and so not on how their terms are divided among processes.

Each element is rounded to a multiple of 2^-46 and kept as two integers, its nearest whole number and the rest times
2^46. Integers add up without error, up to 2^16 terms of magnitudes up to 2^45.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOST = 2.0**45
"""Largest magnitude of an element."""

_MOST_TERMS = 2**16
_FRACTION = 2.0**46


class ExactSum:
    """The sum of some terms, each a list of tensors. It takes 16 bytes per element, for any number of terms.

    like: tensors with the shapes and the device of a term's. They must have one device.
    terms: the number of terms, those of all processes together.

    Raises ValueError for more than 65,536 terms, whose sum might overflow.
    """

    def __init__(self, like: Sequence[Tensor], terms: int) -> None:
        if terms > _MOST_TERMS:
            raise ValueError(f"an exact sum has at most {_MOST_TERMS} terms, not {terms}: use larger micro-batches")
        self._shapes = [x.shape for x in like]
        self.words = torch.zeros(2, sum(x.numel() for x in like), dtype=torch.int64, device=like[0].device)
        """int64 [2, elements]: those of several processes may be added up."""

    def add(self, term: Sequence[Tensor]) -> None:
        """Adds a term, of finite elements up to `MOST`."""
        x = torch.cat([each.detach().double().flatten() for each in term])
        whole = x.round()
        self.words[0] += whole.to(torch.int64)
        self.words[1] += (x - whole).mul_(_FRACTION).round_().to(torch.int64)

    def total(self) -> list[Tensor]:
        """The sum, as float64 tensors."""
        flat = self.words[0].double() + self.words[1].double() / _FRACTION
        parts = flat.split([shape.numel() for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]
