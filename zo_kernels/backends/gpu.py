"""What the backends for GPUs share: recurrent forwards in torch, a chunk of probes at a time.

They have kernels for Rademacher probes. Probes of other distributions are drawn on the host by the reference backend,
slowly, with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .base import RecurrentWeights
from .recurrent import batched
from .reference import ReferenceBackend


class GpuBackend(ReferenceBackend):
    """A backend without kernels of its own; subclasses override the methods that they have kernels for."""

    fused_forward = True
    bfloat16_needs = "backend 'cuda'"

    def precisions(self) -> tuple[str, ...]:
        return ("float32",)

    def recurrent_nats(
        self,
        weights: RecurrentWeights,
        tokens: Tensor,
        targets: Tensor,
        seeds: npt.NDArray[np.int64],
        eps: float,
        states: Sequence[Tensor],
        precision: str,
    ) -> Tensor:
        return batched.recurrent_nats(self, weights, tokens, targets, torch.from_numpy(seeds), eps, states)
