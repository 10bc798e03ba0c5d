"""Activity perturbation in plain torch and float64, one probe and one sign at a time: the ground truth, and slow."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...philox import Stream, probe_bits
from ..base import CELLS, RecurrentWeights
from .problem import ActivityGradient, ActivityProblem, signs_stride


def signs(problem: ActivityProblem, seed: int) -> Tensor:
    """Returns xi of a probe, float64 [T, G, N, D, B].

    Element (g, n, d) of step t is element j = t * stride + (g * N + n) * D + d of the sequence, with `signs_stride`.
    Its sign is bit j of the Philox stream ACTIVITY with the number of the sequence as counter word 3.
    """
    shape, (batch, steps) = problem.weights.bias.shape, problem.tokens.shape
    stride = signs_stride(shape.numel())
    numbers = [problem.first_sequence + b for b in range(batch)]
    bits = [probe_bits(steps * stride, seed, stream=Stream.ACTIVITY, number=number) for number in numbers]
    xi_BTP = 2.0 * torch.stack([torch.from_numpy(each).double() for each in bits]).view(batch, steps, stride) - 1.0
    xi_BTP = xi_BTP[..., : shape.numel()].to(problem.tokens.device)
    return xi_BTP.permute(1, 2, 0).unflatten(1, shape)


def rows_of(weights: RecurrentWeights, tokens_B: Tensor, h_NBD: Tensor) -> Tensor:
    """Returns the pre-activations [G, N, D, B] of a step."""
    shape = CELLS[weights.cell]
    first_input = shape.biases - shape.input_rows
    x_INDB = torch.einsum("be,gnde->gndb", weights.embedding[tokens_B], weights.input_weight)
    r_RNDB = torch.einsum("nbk,gndk->gndb", h_NBD, weights.recurrent_weight)
    before, after = (0, 0, 0, 0, 0, 0), shape.biases - shape.recurrent_rows
    rows = weights.bias[..., None] + F.pad(x_INDB, (*before, first_input, 0))
    return rows + F.pad(r_RNDB, (*before, 0, after))


def cell_of(cell: str, rows_GNDB: Tensor, states_NBD: list[Tensor]) -> list[Tensor]:
    """Returns the states [N, B, D] after a step; see `zo_kernels.models` for the cells."""
    rows = rows_GNDB.transpose(2, 3)
    if cell == "lstm":
        i, f, z, o = rows
        c = torch.sigmoid(f) * states_NBD[1] + torch.sigmoid(i) * torch.tanh(z)
        return [torch.sigmoid(o) * torch.tanh(c), c]
    if cell == "gru":
        g, r, z, n = rows
        z = torch.sigmoid(z)
        return [z * states_NBD[0] + (1 - z) * torch.tanh(n + torch.sigmoid(r) * g)]
    return [torch.tanh(rows[0])]


def nats_of(weights: RecurrentWeights, h_NBD: Tensor, targets_B: Tensor) -> Tensor:
    """Returns the cross-entropy [B] of a step, 0 where it is not scored."""
    logits = F.linear(h_NBD.transpose(0, 1).flatten(1), weights.output_weight, weights.output_bias)
    return F.cross_entropy(logits, targets_B, reduction="none")


def activity(problem: ActivityProblem) -> ActivityGradient:
    """See `Backend.recurrent_activity`."""
    parameters = [x.detach().double().requires_grad_(True) for x in problem.weights.tensors]
    weights = RecurrentWeights.of(problem.weights.cell, problem.weights.offsets, parameters)
    (_, steps), half = problem.tokens.shape, problem.local_gradient
    with torch.enable_grad():
        rows, clean_TB, local = [], [], []
        states = problem.start(torch.float64)
        for t in range(steps):
            rows.append(rows_of(weights, problem.tokens[:, t], states[0]))
            moved = rows[-1].detach().requires_grad_(True)
            after = cell_of(weights.cell, moved, states)
            nats_B = nats_of(weights, after[0], problem.targets[:, t])
            local.append(torch.autograd.grad(nats_B.sum(), moved, retain_graph=True)[0])
            states = [state.detach() for state in after]
            clean_TB.append(nats_of(weights, states[0], problem.targets[:, t]))
        deltas = [a * half for a in local]
        nats = torch.zeros(len(problem.seeds), 2, dtype=torch.float64)
        for i, seed in enumerate(problem.seeds.tolist() if problem.is_perturbed else []):
            xi = signs(problem, seed)
            losses = [_perturbed(problem, weights, xi, sign * problem.sigma) for sign in (1.0, -1.0)]
            nats[i] = torch.stack([loss.sum().cpu() for loss in losses])
            d_TB = (losses[0] - losses[1]) / (2 * problem.sigma)
            if half:
                d_TB = d_TB - torch.stack([(a * x).sum((0, 1, 2)) for a, x in zip(local, xi, strict=True)])
            for t in range(steps):
                credit_B = d_TB[t + half : t + problem.credit_length].sum(0)
                deltas[t] = deltas[t] + credit_B * xi[t] / len(problem.seeds)
        clean = torch.stack(clean_TB).sum()
        surrogate = clean + torch.stack([(g * d.detach()).sum() for g, d in zip(rows, deltas, strict=True)]).sum()
        gradients = torch.autograd.grad(surrogate, parameters)
    return ActivityGradient(clean.detach().cpu(), nats, tuple(g.to(problem.dtype) for g in gradients))


@torch.no_grad()
def _perturbed(problem: ActivityProblem, weights: RecurrentWeights, xi: Tensor, sigma: float) -> Tensor:
    """Returns the losses [T, B] with all pre-activations moved by sigma xi."""
    states, losses = problem.start(torch.float64), []
    for t in range(problem.tokens.shape[1]):
        states = cell_of(weights.cell, rows_of(weights, problem.tokens[:, t], states[0]) + sigma * xi[t], states)
        losses.append(nats_of(weights, states[0], problem.targets[:, t]))
    return torch.stack(losses)
