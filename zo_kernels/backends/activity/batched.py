"""Activity perturbation in batched torch, for any device.

All probes with both signs share the weights of the model, so they are more sequences of one batch. Two passes over
time: the first runs them and the clean pass and keeps the losses of each step. The second runs the clean pass again and
adds up the gradient. Memory does not grow with T, but for the losses. A short context is read once: what the second
pass needs of it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import CELLS
from .cells import advance, local_rows
from .problem import ActivityGradient, ActivityProblem
from .signs import StepSigns

_KEPT_BYTES = 1 << 28
"""Of the clean pass, so that it need not run twice."""


class _Step(NamedTuple):
    """The clean pass at one step. rows: pre-activations [B, G, N, D]. before, after: states [B, N, D]."""

    rows: Tensor
    before: list[Tensor]
    after: list[Tensor]


@torch.no_grad()
def activity(problem: ActivityProblem) -> ActivityGradient:
    """See `Backend.recurrent_activity`."""
    return _Batched(problem).run()


class _Batched:
    def __init__(self, problem: ActivityProblem) -> None:
        weights, self._problem = problem.weights, problem
        dtype, self._shape = problem.dtype, CELLS[weights.cell]
        tensors = [x.detach().to(dtype) for x in weights.tensors]
        self._embedding, input_weight, recurrent, bias, self._output_weight, self._output_bias = tensors
        self._rows, self._heads, self._dim = bias.shape
        self._first_input = self._rows - self._shape.input_rows
        self._distinct, self._index_BT = problem.tokens.unique(return_inverse=True)
        self._input_PE = input_weight.flatten(0, 2)
        inputs_VP = self._embedding[self._distinct] @ self._input_PE.t()
        self._table_VP = bias.flatten() + F.pad(inputs_VP, (self._first_input * self._heads * self._dim, 0))
        self._recurrent_NDK = recurrent.permute(1, 3, 0, 2).flatten(2).contiguous()  # K row and unit
        self._signs = StepSigns(problem)
        self._members = 2 * len(problem.seeds) if problem.is_perturbed else 0
        element_size = 8 if dtype == torch.float64 else 4
        of_step = (self._rows + 2 * self._shape.states) * self._heads * self._dim * len(problem.tokens) * element_size
        self._keeps = of_step * problem.tokens.shape[1] <= _KEPT_BYTES

    def run(self) -> ActivityGradient:
        differences_nTB, nats, clean, kept = self._losses()
        credits_nTB = self._credits(differences_nTB)
        gradients = self._gradients(credits_nTB, iter(kept) if self._keeps else self._clean_steps())
        return ActivityGradient(clean.cpu(), nats.cpu(), gradients)

    def _losses(self) -> tuple[Tensor, Tensor, Tensor, list[_Step]]:
        """The differences [n, T, B], the sums of nats [n, 2] and of the clean pass, and the clean steps if kept."""
        problem, probes = self._problem, self._members // 2
        (batch, steps), dtype = problem.tokens.shape, problem.dtype
        states = [state.transpose(0, 1).repeat(1 + self._members, 1, 1) for state in problem.start(dtype)]
        differences = self._table_VP.new_zeros(probes, steps, batch)
        nats = torch.zeros(self._members, dtype=torch.float64, device=differences.device)
        clean, kept = nats.new_zeros(()), []
        for t in range(steps):
            rows_MBP = self._table_VP[self._index_BT[:, t]] + self._recurrence(states[0]).unflatten(0, (-1, batch))
            if probes:
                xi_nBP = self._signs.at(t)
                rows_MBP[1 : 1 + probes].add_(xi_nBP, alpha=problem.sigma)
                rows_MBP[1 + probes :].sub_(xi_nBP, alpha=problem.sigma)
            rows = rows_MBP.flatten(0, 1).unflatten(1, (self._rows, self._heads, self._dim))
            before, states = states, advance(problem.weights.cell, rows, states)
            if self._keeps:
                kept.append(_Step(rows[:batch], [s[:batch] for s in before], [s[:batch] for s in states]))
            logits = F.linear(states[0].flatten(1), self._output_weight, self._output_bias)
            targets = problem.targets[:, t].repeat(1 + self._members)
            losses_MB = F.cross_entropy(logits, targets, reduction="none").unflatten(0, (-1, batch))
            of_members = losses_MB.sum(1, dtype=torch.float64)
            clean, nats = clean + of_members[0], nats + of_members[1:]
            if probes:
                difference = (losses_MB[1 : 1 + probes] - losses_MB[1 + probes :]) / (2 * problem.sigma)
                if problem.local_gradient:
                    step = _Step(rows[:batch], [s[:batch] for s in before], [s[:batch] for s in states])
                    local_BP = self._local(step, self._error(logits[:batch], problem.targets[:, t]))
                    difference = difference - torch.einsum("nbp,bp->nb", xi_nBP, local_BP)
                differences[:, t] = difference
        sums = torch.zeros(len(problem.seeds), 2, dtype=torch.float64, device=nats.device)
        return differences, nats.view(2, -1).t() if probes else sums, clean, kept

    def _clean_steps(self) -> Iterator[_Step]:
        problem = self._problem
        states = [state.transpose(0, 1) for state in problem.start(problem.dtype)]
        for t in range(problem.tokens.shape[1]):
            rows_BP = self._table_VP[self._index_BT[:, t]] + self._recurrence(states[0])
            before, rows = states, rows_BP.unflatten(1, (self._rows, self._heads, self._dim))
            states = advance(problem.weights.cell, rows, states)
            yield _Step(rows, before, states)

    def _credits(self, differences_nTB: Tensor) -> Tensor:
        """The losses that follow a step, within the credit length, [n, T, B]; divided by the number of probes."""
        sums = F.pad(differences_nTB.flip(1).cumsum(1, dtype=torch.float64).flip(1), (0, 0, 0, 1))
        steps = differences_nTB.shape[1]
        first = torch.arange(steps, device=sums.device) + int(self._problem.local_gradient)
        last = torch.arange(steps, device=sums.device) + min(self._problem.credit_length, steps)
        credits = sums[:, first.clamp(max=steps)] - sums[:, last.clamp(max=steps)]
        return (credits / max(len(self._problem.seeds), 1)).to(differences_nTB.dtype)

    def _gradients(self, credits_nTB: Tensor, steps: Iterator[_Step]) -> tuple[Tensor, ...]:
        problem = self._problem
        recurrent_NDK = torch.zeros_like(self._recurrent_NDK)
        table_VP = torch.zeros_like(self._table_VP)
        output_weight, output_bias = torch.zeros_like(self._output_weight), torch.zeros_like(self._output_bias)
        recurrent_units = self._shape.recurrent_rows * self._dim
        for t, step in enumerate(steps):
            h_BH = step.after[0].flatten(1)
            logits_BV = F.linear(h_BH, self._output_weight, self._output_bias)
            error_BV = self._error(logits_BV, problem.targets[:, t])
            output_weight.addmm_(error_BV.t(), h_BH)
            output_bias += error_BV.sum(0)
            delta_BP = self._local(step, error_BV) if problem.local_gradient else None
            if self._members:
                estimate = torch.einsum("nb,nbp->bp", credits_nTB[:, t], self._signs.at(t))
                delta_BP = estimate if delta_BP is None else delta_BP + estimate
            if delta_BP is None:
                continue
            delta_NBK = delta_BP.unflatten(1, (self._rows, self._heads, self._dim))[:, : self._shape.recurrent_rows]
            delta_NBK = delta_NBK.permute(2, 0, 1, 3).reshape(self._heads, -1, recurrent_units)
            recurrent_NDK.baddbmm_(step.before[0].permute(1, 2, 0), delta_NBK)
            table_VP.index_add_(0, self._index_BT[:, t], delta_BP)
        units = self._heads, self._dim
        inputs_VP = table_VP[:, self._first_input * self._heads * self._dim :]
        embedding = torch.zeros_like(self._embedding)
        embedding[self._distinct] = inputs_VP @ self._input_PE
        input_weight = (inputs_VP.t() @ self._embedding[self._distinct]).unflatten(0, (-1, *units))
        recurrent = recurrent_NDK.unflatten(2, (-1, self._dim)).permute(2, 0, 3, 1).contiguous()
        return (
            embedding,
            input_weight,
            recurrent,
            table_VP.sum(0).unflatten(0, (-1, *units)),
            output_weight,
            output_bias,
        )

    def _recurrence(self, h_BND: Tensor) -> Tensor:
        """The recurrent projection [B, P], 0 in rows without one."""
        products_NBK = torch.bmm(h_BND.transpose(0, 1), self._recurrent_NDK)
        products_BRND = products_NBK.unflatten(2, (-1, self._dim)).permute(1, 2, 0, 3)
        missing = self._rows - self._shape.recurrent_rows
        return F.pad(products_BRND, (0, 0, 0, 0, 0, missing)).flatten(1)

    def _error(self, logits_BV: Tensor, targets_B: Tensor) -> Tensor:
        """The gradient of a step's losses with respect to the logits, [B, V]."""
        scored_B1 = (targets_B >= 0)[:, None]
        error_BV = torch.softmax(logits_BV, -1) * scored_B1
        return error_BV.scatter_add_(1, targets_B.clamp(min=0)[:, None], -scored_B1.to(error_BV.dtype))

    def _local(self, step: _Step, error_BV: Tensor) -> Tensor:
        """The gradient of a step's losses with respect to its pre-activations, at fixed states before it: [B, P]."""
        outer_BND = (error_BV @ self._output_weight).unflatten(1, (self._heads, self._dim))
        return local_rows(self._problem.weights.cell, step.rows, step.before, step.after, outer_BND).flatten(1)
