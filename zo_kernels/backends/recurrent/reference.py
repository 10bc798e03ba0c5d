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
from ..base import CELLS, NORM_EPS, RecurrentWeights


def _compute_dtype(weights: RecurrentWeights) -> torch.dtype:
    return torch.float64 if weights.bias.dtype == torch.float64 else torch.float32


def probe_of(weights: RecurrentWeights, seed: int) -> list[Tensor | None]:
    """Returns p(seed) for each of the tensors, in its shape; None for one that is not perturbed."""
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
    return RecurrentWeights.of(weights.cell, weights.offsets, moved, weights.residual)


def step(weights: RecurrentWeights, tokens_B: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Returns the output [B, H] of the last layer and the states [L * N, B, D] after one more token."""
    x_BK, after = weights.embedding[tokens_B], []
    for layer, before in enumerate(zip(*(state.chunk(weights.num_layers) for state in states), strict=True)):
        after.append(_step_layer(weights.cell, *_layer(weights, layer), x_BK, before))
        y_BH = after[-1][0].transpose(0, 1).flatten(1)
        if weights.norm_weight is not None and weights.norm_bias is not None:
            y_BH = F.layer_norm(y_BH, y_BH.shape[1:], weights.norm_weight[layer], weights.norm_bias[layer], NORM_EPS)
        x_BK = y_BH + x_BK if weights.residual and layer > 0 else y_BH
    return x_BK, [torch.cat(layers) for layers in zip(*after, strict=True)]


def _layer(weights: RecurrentWeights, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """The input weight, recurrent weight and bias of a layer."""
    if layer == 0:
        return weights.input_weight, weights.recurrent_weight, weights.bias
    input_weight, recurrent_weight, bias = (x[layer - 1] for x in weights.upper)
    return input_weight, recurrent_weight, bias


def _step_layer(
    cell: str,
    input_weight: Tensor,
    recurrent_weight: Tensor,
    bias: Tensor,
    x_BK: Tensor,
    states_NBD: Sequence[Tensor],
) -> list[Tensor]:
    """Returns the states of a layer after one more input; see `zo_kernels.models` for the cells."""
    h_NBD = states_NBD[0]
    x_GNBD = torch.einsum("be,gnde->gnbd", x_BK, input_weight)
    r_GNBD = torch.einsum("nbk,gndk->gnbd", h_NBD, recurrent_weight)
    b_GN1D = bias[:, :, None]
    if cell == "lstm":
        i, f, z, o = x_GNBD + r_GNBD + b_GN1D
        c_NBD = torch.sigmoid(f) * states_NBD[1] + torch.sigmoid(i) * torch.tanh(z)
        return [torch.sigmoid(o) * torch.tanh(c_NBD), c_NBD]
    if cell == "gru":
        g = r_GNBD[0] + b_GN1D[0]
        r, z = torch.sigmoid(x_GNBD[:2] + r_GNBD[1:] + b_GN1D[1:3])
        return [z * h_NBD + (1 - z) * torch.tanh(x_GNBD[2] + b_GN1D[3] + r * g)]
    return [torch.tanh(x_GNBD[0] + r_GNBD[0] + b_GN1D[0])]


def logits_of(weights: RecurrentWeights, y_BH: Tensor) -> Tensor:
    """Returns logits [B, V] of an output of the last layer."""
    return F.linear(y_BH, weights.output_weight, weights.output_bias)


def zero_states(weights: RecurrentWeights, batch_size: int) -> list[Tensor]:
    """Returns the states before the first token, each float64 [L * N, B, D]."""
    _, heads, dim = weights.bias.shape
    shape = weights.num_layers * heads, batch_size, dim
    return [weights.bias.new_zeros(shape).double() for _ in range(CELLS[weights.cell].states)]


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
                output, current = step(member, tokens[:, t], current)
                if bool((targets[:, t] >= 0).any()):
                    logits = logits_of(member, output)
                    nats[i, s] += F.cross_entropy(logits, targets[:, t], reduction="sum").cpu()
            for state, last in zip(states, current, strict=False):
                state[i, s] = last
    return nats


def recurrent_logits(weights: RecurrentWeights, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
    """See `Backend.recurrent_logits`."""
    exact = perturb(weights, 0.0, [None] * len(weights.tensors))
    current, output = [state.double() for state in states], torch.empty(0)
    for t in range(tokens.shape[1]):
        output, current = step(exact, tokens[:, t], current)
    for state, last in zip(states, current, strict=True):
        state.copy_(last)
    return logits_of(exact, output).to(states[0].dtype)


def recurrent_score(
    weights: RecurrentWeights, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """See `Backend.recurrent_score`."""
    exact = perturb(weights, 0.0, [None] * len(weights.tensors))
    current = [state.double() for state in states]
    nats, correct = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    for t in range(tokens.shape[1]):
        output, current = step(exact, tokens[:, t], current)
        logits = logits_of(exact, output)
        nats += F.cross_entropy(logits, targets[:, t], reduction="sum").cpu()
        correct += (logits.argmax(dim=-1) == targets[:, t]).sum().cpu()  # no target is -100 by chance
    for state, last in zip(states, current, strict=True):
        state.copy_(last)
    return nats, correct
