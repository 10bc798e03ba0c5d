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
from .cells import Stack, joined
from .loss import logits, nats
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
    seeds = seeds.to(tokens.device)
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
    recurrent = weights.num_layers * weights.recurrent_weight.numel()
    numbers = sum(x.numel() for x in weights.tensors) + 2 * recurrent
    numbers += distinct * shape.input_rows * hidden_size
    numbers += batch_size * hidden_size * (2 * shape.input_rows + 2 * shape.recurrent_rows + 8 * weights.num_layers)
    return max(1, int(population_bytes(weights) / (2 * size * numbers)))


def recurrent_logits(weights: RecurrentWeights, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
    """See `Backend.recurrent_logits`. Weights of 32 and 64 bits are not copied."""
    dtype = _wide_dtype(weights)
    exact = {name: x.detach().to(dtype)[None] for name, x in zip(weights.names, weights.tensors, strict=True)}
    distinct, index_BT = tokens.unique(return_inverse=True)
    stack = Stack(weights, exact)
    table_MVG, running = stack.table(distinct), stack.start([state[None] for state in states], len(tokens))
    out_MBH = table_MVG.new_empty(1, len(tokens), weights.output_weight.shape[1])
    for index_B in index_BT.t().contiguous():
        running = stack.step(table_MVG, index_B, running, out_MBH)
    for state, last in zip(states, joined(running), strict=True):
        state.copy_(last[0])
    return logits(out_MBH, exact["output_weight"], exact["output_bias"])[0]


def _wide_dtype(weights: RecurrentWeights) -> torch.dtype:
    return torch.float64 if weights.bias.dtype == torch.float64 else torch.float32


def _members(backend: Backend, weights: RecurrentWeights, seeds: Tensor, eps: float) -> dict[str, Tensor]:
    """Returns each parameter by name at theta + eps * p and theta - eps * p, as [2n, ...]."""
    dtype, members = _wide_dtype(weights), {}
    alpha = torch.full((), eps, dtype=torch.float64, device=seeds.device)
    for name, x, offset in zip(weights.names, weights.tensors, weights.offsets, strict=True):
        x = x.detach()
        if offset < 0:
            members[name] = x.to(dtype).expand(2 * len(seeds), *x.shape)
            continue
        out = torch.empty(len(seeds), 2, *x.shape, dtype=dtype, device=x.device)
        backend.apply_probes(x, out, alpha, seeds, offset)
        members[name] = out.flatten(0, 1)
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
    """Returns the sums of nats of one chunk of probes, float64 [n, 2]. M in the names of shapes is 2n.

    seeds: on the device of the weights, from where nothing is copied to it.
    """
    moved = _members(backend, weights, seeds, eps)
    stack = Stack(weights, moved)
    table_MVG = stack.table(distinct)
    (batch_size, num_steps), hidden_size = index_BT.shape, weights.output_weight.shape[1]
    index_TB = index_BT.t().contiguous()
    running = stack.start([state.flatten(0, 1) for state in states], batch_size)
    size = len(table_MVG) * batch_size * hidden_size * table_MVG.element_size()
    block = min(num_steps, max(1, _HIDDEN_BYTES // size))
    hidden_MTBH = table_MVG.new_empty(len(table_MVG), block, batch_size, hidden_size)
    total = torch.zeros(len(table_MVG), dtype=torch.float64, device=table_MVG.device)
    for t in range(num_steps):
        running = stack.step(table_MVG, index_TB[t], running, hidden_MTBH[:, t % block])
        if t % block == block - 1 or t == num_steps - 1:
            first, last = t - t % block, t + 1
            hidden_TBMH = hidden_MTBH[:, : last - first].permute(1, 2, 0, 3)
            total += nats(hidden_TBMH, moved["output_weight"], moved["output_bias"], targets_BT[:, first:last].t())
    for state, after in zip(states, joined(running), strict=False):
        state.copy_(after.view_as(state))
    return total.view(-1, 2)
