"""What the backends for GPUs share: populations by a kernel in bfloat16, else in torch, and what kernels read.

They have kernels for the ops, on probes of every distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..philox import BLOCK_SIGNS
from .activity.batched import activity as batched_activity
from .activity.problem import ActivityGradient, ActivityProblem
from .base import PRECISIONS, RecurrentWeights
from .pieces import DeviceTable, Pieces
from .recurrent import batched, choice
from .reference import ReferenceBackend

TILE = 4096
"""Elements of a tile, of which a warp or a program has one: what the tiles of a list are counted in."""


def beside(x: Tensor | Pieces, values: Tensor) -> Tensor:
    """Returns `values` on the device of x, copied from pinned memory so that the host need not wait."""
    if values.device == x.device:
        return values
    return values.pin_memory().to(x.device, non_blocking=True)


def queue_of(x: Tensor | Pieces) -> tuple[int, int]:
    """Returns the tensor's device, which the launchers make current, and torch's current cudaStream_t on it."""
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def rows_beside(
    x: Tensor | Pieces,
    seeds: npt.NDArray[np.int64],
    coeffs: npt.NDArray[np.int32] | npt.NDArray[np.float64],
    distribution: str,
) -> Tensor:
    """Returns seeds and coefficients as the accumulating kernels read them: int64 [n, 2] on the device.

    Coefficients are integers for Rademacher probes and the bits of a float64 for others.
    """
    words = coeffs.astype(np.int64) if distribution == "rademacher" else coeffs.astype(np.float64).view(np.int64)
    return beside(x, torch.from_numpy(np.stack((seeds, words), axis=1)))


def table_of(x: Pieces) -> DeviceTable:
    """Returns the table of a list on its device. The first call for a list waits for the copy.

    Raises RuntimeError where that call is captured in a CUDA graph.
    """
    if x.device_table is None:
        if x.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a CUDA graph can't capture the first use of a list of tensors; use the list once before"
            )
        addresses, numels, offsets = np.frombuffer(x.table, np.int64).reshape(-1, 3).T
        tiles = -(-numels // TILE)
        rows = np.stack((addresses, numels, offsets // BLOCK_SIGNS, tiles.cumsum() - tiles), axis=1)
        x.device_table = DeviceTable(torch.from_numpy(rows).to(x.device), int(tiles.sum()))
    if x.device.type == "cuda":  # else its memory could be reused while a kernel on another stream reads it
        x.device_table.rows.record_stream(torch.cuda.current_stream(x.device))
    return x.device_table


def tables_of(x: Pieces, out: Pieces) -> tuple[DeviceTable, DeviceTable]:
    """Returns both tables. Raises ValueError if the pieces differ in more than their addresses."""
    if out is not x:
        places, others = (np.frombuffer(pieces.table, np.int64).reshape(-1, 3)[:, 1:] for pieces in (x, out))
        if not np.array_equal(places, others):
            raise ValueError("the pieces of x and out differ in size or offset")
    return table_of(x), table_of(out)


class GpuBackend(ReferenceBackend):
    """A backend without kernels of its own; subclasses override the methods that they have kernels for."""

    fused_forward = True
    bfloat16_needs = "backend 'cuda'"

    def precisions(self) -> tuple[str, ...]:
        return PRECISIONS if choice.candidates(self.name) else ("float32",)

    def recurrent_forward(self, weights: RecurrentWeights, batch_size: int, precision: str) -> str:
        return choice.choose(self.name, weights, batch_size).name if precision == "bfloat16" else "batched"

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
        if precision == "bfloat16":
            kernel = choice.choose(self.name, weights, len(tokens)).kernel
            return kernel.recurrent_nats(weights, tokens, targets, seeds, eps, states, queue_of(tokens))
        return batched.recurrent_nats(self, weights, tokens, targets, torch.from_numpy(seeds), eps, states)

    def recurrent_logits(self, weights: RecurrentWeights, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
        return batched.recurrent_logits(weights, tokens, states)

    def recurrent_activity(self, problem: ActivityProblem) -> ActivityGradient:
        return batched_activity(problem)
