"""What activity perturbation is asked for, and what it returns.

Notation: B sequences, T steps, G bias rows of a unit (the cell's pre-activations), N heads, D units of a head. g_t
[G, N, D] are the pre-activations of a sequence at step t, and l_t is its cross-entropy there. A probe xi moves all of
them at once, g_t + sigma xi_t, with a sign of its own for each sequence, step and unit. Let d_t = (l_t(+) - l_t(-)) /
(2 sigma) be the difference of a sequence's losses. Then

    delta_t = c_t xi_t,   c_t = d_t + d_{t+1} + ... + d_T

is an estimate of dL/dg_t, where L is the sum of all losses. Losses before t do not depend on g_t, so they are left out
(causal credit). Those of K or more steps later are left out too, if the credit length is K. Estimates of several probes
are averaged. They make the gradient of the parameters by the chain rule of one step: for weights that multiply x_t, it
is the sum over sequences and steps of delta_t x_t^T, with the inputs of the pass without perturbation. The gradient of
the output layer is exact from that pass.

With the local gradient, what a step's pre-activations do to the loss of the same step is not estimated. Let a_t be the
exact gradient dl_t/dg_t at fixed states before the step. Then a_t . xi_t is subtracted from d_t, d_t is left out of
c_t, and delta_t = a_t + c_t xi_t. a_t is a control variate: it removes noise, and the estimate stays unbiased.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...philox import BLOCK_SIGNS
from ..base import CELLS, RecurrentWeights


class ActivityProblem(NamedTuple):
    """A batch, its probes, and how the gradient is estimated."""

    weights: RecurrentWeights
    """Of one layer without layer norm. Offsets do not matter."""
    tokens: Tensor
    """int64 [B, T]"""
    targets: Tensor
    """int64 [B, T], -100 where a position is not scored"""
    states: Sequence[Tensor]
    """The states before the first token, each [N, B, D]; they are read only. Empty: zeros."""
    seeds: npt.NDArray[np.int64]
    """[n]"""
    sigma: float
    credit_length: int
    """Number of losses that a step is credited with, from its own on, at least 1"""
    local_gradient: bool
    first_sequence: int
    """Number of the first sequence among all those of the step, by which its signs are chosen"""

    @property
    def dtype(self) -> torch.dtype:
        """In which the model is computed."""
        return torch.float64 if self.weights.bias.dtype == torch.float64 else torch.float32

    @property
    def is_perturbed(self) -> bool:
        """Whether there is anything to estimate: a local gradient with a credit length of 1 needs no probes."""
        return len(self.seeds) > 0 and not (self.local_gradient and self.credit_length == 1)

    def start(self, dtype: torch.dtype) -> list[Tensor]:
        """The states before the first token, [N, B, D] of `dtype`."""
        if self.states:
            return [state.to(dtype) for state in self.states]
        _, heads, dim = self.weights.bias.shape
        shape = heads, len(self.tokens), dim
        return [self.tokens.new_zeros(shape, dtype=dtype) for _ in range(CELLS[self.weights.cell].states)]


class ActivityGradient(NamedTuple):
    """What activity perturbation returns; the sums are those over the scored positions.

    clean: sum of nats at the parameters: float64 scalar on the CPU.
    nats: sums of nats of each probe with both signs: float64 [n, 2] on the CPU.
    gradients: of the sum of nats, for each of the six weights, on their device in float32 (float64 for float64).
    """

    clean: Tensor
    nats: Tensor
    gradients: tuple[Tensor, ...]


def signs_stride(units: int) -> int:
    """Returns how many elements of a probe a step has: its pre-activations, filled up to whole blocks of signs."""
    return -(-units // BLOCK_SIGNS) * BLOCK_SIGNS
