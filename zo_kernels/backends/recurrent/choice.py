"""Chooses the kernel that computes populations in bfloat16 on a GPU: the first that does not refuse the model.

A kernel is a module with the two functions of `Kernel`. Each has a line in _CANDIDATES, in order of preference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..base import RecurrentWeights
from . import resident, streamed


class Kernel(Protocol):
    """What a module with a GPU kernel for populations has."""

    def refusal(self, weights: RecurrentWeights, batch_size: int, device: torch.device) -> str | None:
        """Returns in one sentence why the kernel can't compute these weights there, or None if it can."""

    def recurrent_nats(
        self,
        weights: RecurrentWeights,
        tokens: Tensor,
        targets: Tensor,
        seeds: npt.NDArray[np.int64],
        eps: float,
        states: Sequence[Tensor],
        queue: tuple[int, int],
    ) -> Tensor:
        """See `Backend.recurrent_nats`. queue: index of the device, and cudaStream_t."""


class Candidate(NamedTuple):
    """A kernel, its name, and the names of the backends that may use it."""

    name: str
    kernel: Kernel
    backends: tuple[str, ...]


_CANDIDATES = (
    Candidate("resident", resident, ("cuda",)),
    Candidate("streamed", streamed, ("cuda", "triton")),
)


def candidates(backend: str) -> list[Candidate]:
    """Returns the kernels that a backend may use, in order of preference."""
    return [candidate for candidate in _CANDIDATES if backend in candidate.backends]


def choose(backend: str, weights: RecurrentWeights, batch_size: int) -> Candidate:
    """Returns the first of the backend's kernels that takes these weights, on the device where they are.

    Raises RuntimeError, in one sentence with the reason of each kernel, if none does.
    """
    reasons = []
    for candidate in candidates(backend):
        reason = candidate.kernel.refusal(weights, batch_size, weights.bias.device)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.name}: {reason.rstrip('.')}")
    raise RuntimeError(
        f"no kernel of backend {backend!r} computes this model with bfloat16 products "
        f"({'; '.join(reasons) or 'there is none'}): use precision='float32'"
    )
