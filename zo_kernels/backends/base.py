"""What a backend provides. `zo_kernels.backends.reference` says in plain torch what each method computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Element types of every op; a position in this tuple is the kernels' dtype code."""


@dataclass(frozen=True)
class Update:
    """What accumulate_probes does to each element besides adding the sum, in this order; see `zo_kernels.ops`."""

    undo_alpha: float = 0.0
    undo_seed: int = 0
    decay: float = 1.0
    grid: float = 0.0


class Backend(ABC):
    """Computes the ops, on tensors that `zo_kernels.ops` has checked (contiguous, of a known dtype, aligned offset).

    Seeds are int64 (their 64 bits as two's complement). Results are bit for bit those of the reference backend.
    """

    name: ClassVar[str]
    device_types: ClassVar[tuple[str, ...]]

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why this backend can't be used on this machine, or None if it can.

        Raises RuntimeError if it could be, but for a setting of the user's: then no other backend must step in.
        """

    @abstractmethod
    def probe(self, out: Tensor, seed: int, offset: int) -> None:
        """out = p(seed)."""

    @abstractmethod
    def apply_probe(self, x: Tensor, out: Tensor, alpha: float, seed: int, offset: int) -> None:
        """out = cast(x + alpha * p(seed)); out may be x."""

    @abstractmethod
    def swap_probe(self, x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, offset: int) -> None:
        """x = cast((x + alpha * p(seed)) + next_alpha * p(next_seed))."""

    @abstractmethod
    def accumulate_probes(
        self,
        x: Tensor,
        quantised: npt.NDArray[np.int32],
        shift: int,
        seeds: npt.NDArray[np.int64],
        offset: int,
        update: Update,
    ) -> None:
        """x += (sum_i quantised[i] * p(seeds[i])) * 2^-shift, with `update`."""
