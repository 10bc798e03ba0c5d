"""The ops in plain NumPy and torch: slow, on any device, and the ground truth of every other backend.

Arithmetic (the contract): elements are computed in float64 for float64 tensors and in float32 otherwise, each operation
rounded to nearest even, and cast once to the result's dtype (float64 to a 16-bit dtype by way of float32, as torch
casts). Sums over seeds are exact integers. Probes of other distributions come from `base`, whose methods every backend
inherits that has no kernel for them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..philox import probe_bits
from .base import Backend, RecurrentWeights, Update, chunks, compute_dtype
from .recurrent import reference


def _signs(like: Tensor, seed: int, offset: int) -> Tensor:
    """p(seed) in the compute dtype of `like`, with its number of elements."""
    bits = torch.from_numpy(probe_bits(like.numel(), seed, offset)).to(like.device)
    return bits.to(compute_dtype(like)) * 2 - 1


class ReferenceBackend(Backend):
    name = "reference"
    device_types = ("cpu", "cuda")

    def unavailable(self) -> str | None:
        return None

    def probe(self, out: Tensor, seed: int, offset: int) -> None:
        flat = out.view(-1)
        for part, j in chunks(flat, offset):
            flat[part] = _signs(flat[part], seed, j).to(out.dtype)

    def apply_probe(self, x: Tensor, out: Tensor, alpha: float, seed: int, offset: int) -> None:
        flat, result, compute = x.view(-1), out.view(-1), compute_dtype(x)
        step = torch.tensor(alpha, dtype=compute, device=x.device)
        for part, j in chunks(flat, offset):
            result[part] = flat[part].to(compute) + step * _signs(flat[part], seed, j)

    def swap_probe(self, x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, offset: int) -> None:
        flat, compute = x.view(-1), compute_dtype(x)
        leave = torch.tensor(alpha, dtype=compute, device=x.device)
        enter = torch.tensor(next_alpha, dtype=compute, device=x.device)
        for part, j in chunks(flat, offset):
            left = flat[part].to(compute) + leave * _signs(flat[part], seed, j)
            flat[part] = left + enter * _signs(flat[part], next_seed, j)

    def accumulate_probes(
        self,
        x: Tensor,
        quantised: npt.NDArray[np.int32],
        shift: int,
        seeds: npt.NDArray[np.int64],
        offset: int,
        update: Update,
    ) -> None:
        flat, compute = x.view(-1), compute_dtype(x)
        scale, undo, decay = (
            torch.tensor(value, dtype=compute, device=x.device)
            for value in (2.0**-shift, update.undo_alpha, update.decay)
        )
        for part, j in chunks(flat, offset):
            numel = flat[part].numel()
            total = np.zeros(numel, np.int64)
            for q, seed in zip(quantised.tolist(), seeds.tolist(), strict=True):
                total += np.where(probe_bits(numel, seed, j), q, -q)
            v = flat[part].to(compute)
            if update.undo_alpha != 0.0:
                v = v + undo * _signs(flat[part], update.undo_seed, j)
            v = v * decay
            v = v + torch.from_numpy(total).to(x.device, compute) * scale
            if update.grid != 0.0:
                v = torch.round(v * (1.0 / update.grid)) * update.grid
            flat[part] = v.to(x.dtype)

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
        return reference.recurrent_nats(weights, tokens, targets, seeds, eps, states)

    def recurrent_logits(self, weights: RecurrentWeights, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
        return reference.recurrent_logits(weights, tokens, states)
