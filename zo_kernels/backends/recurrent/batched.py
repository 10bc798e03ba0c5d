"""The recurrent forwards in torch, for devices without a kernel: many members at once.

A member is the model moved along one probe with one sign. `apply_probes` makes those of a chunk of probes with one call
per parameter, and they are a batch dimension of every product. Arithmetic is float32 (float64 for float64 weights),
sums over positions are float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..base import CELLS, Backend, RecurrentWeights
from .loss import nats
from .memory import population_bytes

_HIDDEN_BYTES = 1 << 26
"""Bytes of the hidden states that wait for their output projection."""


def recurrent_nats(
    backend: Backend,
    weights: RecurrentWeights,
    tokens: Tensor,
    targets: Tensor,
    seeds: Tensor,
    eps: float,
    states: Sequence[Tensor],
) -> Tensor:
    """See `Backend.recurrent_nats`. `backend` makes the perturbed weights."""
    distinct, index_BT = tokens.unique(return_inverse=True)
    chunk = probes_at_once(weights, len(distinct), len(tokens))
    parts = []
    for first in range(0, len(seeds), chunk):
        part = seeds[first : first + chunk]
        carried = [state[first : first + chunk] for state in states]
        parts.append(_chunk_nats(backend, weights, distinct, index_BT, targets, part, eps, carried))
    return torch.cat(parts).cpu() if parts else torch.zeros(0, 2, dtype=torch.float64)


def probes_at_once(weights: RecurrentWeights, distinct: int, batch_size: int) -> int:
    """Returns how many probes have members that fit the free memory, at least one.

    distinct: the number of different tokens in the batch.
    """
    shape, size = CELLS[weights.cell], 8 if weights.bias.dtype == torch.float64 else 4
    hidden_size = weights.output_weight.shape[1]
    numbers = sum(x.numel() for x in weights.tensors) + 2 * weights.recurrent_weight.numel()
    numbers += distinct * shape.input_rows * hidden_size
    numbers += batch_size * hidden_size * (2 * shape.input_rows + 2 * shape.recurrent_rows + 8)
    return max(1, int(population_bytes(weights) / (2 * size * numbers)))


def _members(
    backend: Backend, weights: RecurrentWeights, seeds: Tensor, eps: float, dtype: torch.dtype
) -> list[Tensor]:
    """Returns each parameter at theta + eps * p and theta - eps * p, as [2n, ...] of `dtype`."""
    alpha, members = torch.tensor(eps, dtype=torch.float64), []
    for x, offset in zip(weights.tensors, weights.offsets, strict=True):
        x = x.detach()
        if offset < 0:
            members.append(x.to(dtype).expand(2 * len(seeds), *x.shape))
            continue
        out = torch.empty(len(seeds), 2, *x.shape, dtype=dtype, device=x.device)
        backend.apply_probes(x, out, alpha, seeds, offset)
        members.append(out.flatten(0, 1))
    return members


def _chunk_nats(
    backend: Backend,
    weights: RecurrentWeights,
    distinct: Tensor,
    index_BT: Tensor,
    targets_BT: Tensor,
    seeds: Tensor,
    eps: float,
    states: Sequence[Tensor],
) -> Tensor:
    """Returns the sums of nats of one chunk of probes, float64 [n, 2]. M in the names of shapes is 2n."""
    dtype = torch.float64 if weights.bias.dtype == torch.float64 else torch.float32
    embedding, input_weight, recurrent_weight, bias, output_weight, output_bias = _members(
        backend, weights, seeds, eps, dtype
    )
    members, inputs, heads, dim, _ = input_weight.shape
    shape, (batch_size, num_steps) = CELLS[weights.cell], index_BT.shape
    projected = torch.bmm(embedding[:, distinct], input_weight.flatten(1, 3).transpose(1, 2))
    table_MVNID = projected.unflatten(2, (inputs, heads, dim)).transpose(2, 3).contiguous()
    r_MNPK = recurrent_weight.permute(0, 2, 4, 1, 3).flatten(3).contiguous()  # P previous unit, K row and unit
    b_MGN1D = bias[:, :, :, None]
    current = [state.flatten(0, 1) for state in states] or [
        table_MVNID.new_zeros(members, heads, batch_size, dim) for _ in range(shape.states)
    ]
    block = max(1, _HIDDEN_BYTES // (current[0].numel() * current[0].element_size()))
    total, hidden, first = torch.zeros(members, dtype=torch.float64, device=bias.device), [], 0
    for t in range(num_steps):
        x_MNBID = table_MVNID[:, index_BT[:, t]].transpose(1, 2)
        r_MNBRD = torch.matmul(current[0], r_MNPK).unflatten(3, (shape.recurrent_rows, dim))
        current = _cell(weights.cell, x_MNBID.unbind(3), r_MNBRD.unbind(3), b_MGN1D.unbind(1), current)
        hidden.append(current[0])
        if len(hidden) == block or t == num_steps - 1:
            hidden_TBMH = torch.stack(hidden).permute(0, 3, 1, 2, 4).flatten(3)
            total += nats(hidden_TBMH, output_weight, output_bias, targets_BT[:, first : t + 1].t())
            hidden, first = [], t + 1
    for state, last in zip(states, current, strict=False):
        state.copy_(last.view_as(state))
    return total.view(-1, 2)


def _cell(
    cell: str, x: Sequence[Tensor], r: Sequence[Tensor], b: Sequence[Tensor], states: Sequence[Tensor]
) -> list[Tensor]:
    """Returns the states after one step, from input rows x, recurrent rows r and biases b; see `zo_kernels.models`."""
    if cell == "lstm":
        i, f, z, o = (x[k] + r[k] + b[k] for k in range(4))
        c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(z)
        return [torch.sigmoid(o) * torch.tanh(c), c]
    if cell == "gru":
        reset, update = (torch.sigmoid(x[k] + r[k + 1] + b[k + 1]) for k in range(2))
        return [update * states[0] + (1 - update) * torch.tanh(x[2] + b[3] + reset * (r[0] + b[0]))]
    return [torch.tanh(x[0] + r[0] + b[0])]
