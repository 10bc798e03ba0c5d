"""What the backends for GPUs share: recurrent forwards in torch, a chunk of probes at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .base import Backend, RecurrentWeights
from .recurrent import batched, reference


class GpuBackend(Backend):
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

    def recurrent_logits(self, weights: RecurrentWeights, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
        return reference.recurrent_logits(weights, tokens, states)
