"""The recurrent forwards in plain torch and float64, with one perturbed copy of the weights at a time.

They are the ground truth of the other forwards, and slow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ...philox import probe_bits
from ..base import CELLS, RecurrentWeights


def _compute_dtype(weights: RecurrentWeights) -> torch.dtype:
    return torch.float64 if weights.bias.dtype == torch.float64 else torch.float32


def probe_of(weights: RecurrentWeights, seed: int) -> list[Tensor | None]:
    """Returns p(seed) for each of the six tensors, in its shape; None for one that is not perturbed."""
    probe: list[Tensor | None] = []
    for x, offset in zip(weights.tensors, weights.offsets, strict=True):
        if offset < 0:
            probe.append(None)
            continue
        bits = torch.from_numpy(probe_bits(x.numel(), seed, offset))
        probe.append(2 * bits.to(x.device, _compute_dtype(weights)).view(x.shape) - 1)
    return probe


def perturb(weights: RecurrentWeights, alpha: float, probe: list[Tensor | None]) -> RecurrentWeights:
    """Returns the weights theta + alpha * p in float64, rounded to float32 on the way unless theta is float64."""
    compute = _compute_dtype(weights)
    moved = []
    for x, p in zip(weights.tensors, probe, strict=True):
        x = x.detach().to(compute)
        if p is not None:
            x = x + torch.tensor(alpha, dtype=compute, device=x.device) * p
        moved.append(x.double())
    return RecurrentWeights(weights.cell, weights.offsets, *moved)


def step(weights: RecurrentWeights, tokens_B: Tensor, states_NBD: list[Tensor]) -> list[Tensor]:
    """Returns the states after one more token; see `zo_kernels.models` for the cells."""
    h_NBD = states_NBD[0]
    x_GNBD = torch.einsum("be,gnde->gnbd", weights.embedding[tokens_B], weights.input_weight)
    r_GNBD = torch.einsum("nbk,gndk->gnbd", h_NBD, weights.recurrent_weight)
    b_GN1D = weights.bias[:, :, None]
    if weights.cell == "lstm":
        i, f, z, o = x_GNBD + r_GNBD + b_GN1D
        c_NBD = torch.sigmoid(f) * states_NBD[1] + torch.sigmoid(i) * torch.tanh(z)
        return [torch.sigmoid(o) * torch.tanh(c_NBD), c_NBD]
    if weights.cell == "gru":
        g = r_GNBD[0] + b_GN1D[0]
        r, z = torch.sigmoid(x_GNBD[:2] + r_GNBD[1:] + b_GN1D[1:3])
        return [z * h_NBD + (1 - z) * torch.tanh(x_GNBD[2] + b_GN1D[3] + r * g)]
    return [torch.tanh(x_GNBD[0] + r_GNBD[0] + b_GN1D[0])]


def logits_of(weights: RecurrentWeights, h_NBD: Tensor) -> Tensor:
    """Returns logits [B, V] of a hidden state."""
    return F.linear(h_NBD.transpose(0, 1).flatten(1), weights.output_weight, weights.output_bias)


def zero_states(weights: RecurrentWeights, batch_size: int) -> list[Tensor]:
    """Returns the states before the first token, each float64 [N, B, D]."""
    _, heads, dim = weights.bias.shape
    return [weights.bias.new_zeros(heads, batch_size, dim).double() for _ in range(CELLS[weights.cell].states)]


def recurrent_nats(
    weights: RecurrentWeights,
    tokens: Tensor,
    targets: Tensor,
    seeds: npt.NDArray[np.int64],
    eps: float,
    states: Sequence[Tensor],
) -> Tensor:
    """See `Backend.recurrent_nats`."""
    nats = torch.zeros(len(seeds), 2, dtype=torch.float64)
    for i, seed in enumerate(seeds.tolist()):
        probe = probe_of(weights, seed)
        for s, alpha in enumerate((eps, -eps)):
            member = perturb(weights, alpha, probe)
            current = [state[i, s].double() for state in states] or zero_states(member, len(tokens))
            for t in range(tokens.shape[1]):
                current = step(member, tokens[:, t], current)
                if bool((targets[:, t] >= 0).any()):
                    logits = logits_of(member, current[0])
                    nats[i, s] += F.cross_entropy(logits, targets[:, t], reduction="sum").cpu()
            for state, last in zip(states, current, strict=False):
                state[i, s] = last
    return nats


def recurrent_logits(weights: RecurrentWeights, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
    """See `Backend.recurrent_logits`."""
    exact = perturb(weights, 0.0, [None] * 6)
    current = [state.double() for state in states]
    for t in range(tokens.shape[1]):
        current = step(exact, tokens[:, t], current)
    for state, last in zip(states, current, strict=True):
        state.copy_(last)
    return logits_of(exact, current[0]).to(states[0].dtype)


def recurrent_score(
    weights: RecurrentWeights, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """See `Backend.recurrent_score`."""
    exact = perturb(weights, 0.0, [None] * 6)
    current = [state.double() for state in states]
    nats, correct = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    for t in range(tokens.shape[1]):
        current = step(exact, tokens[:, t], current)
        logits = logits_of(exact, current[0])
        nats += F.cross_entropy(logits, targets[:, t], reduction="sum").cpu()
        correct += (logits.argmax(dim=-1) == targets[:, t]).sum().cpu()  # no target is -100 by chance
    for state, last in zip(states, current, strict=True):
        state.copy_(last)
    return nats, correct
