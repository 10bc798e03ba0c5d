"""The recurrent forwards in torch, for devices without a kernel: many members at once.

A member is the model moved along one probe with one sign. `apply_probes` makes those of a chunk of probes with one call
per parameter, and they are a batch dimension of every product. Arithmetic is float32 (float64 for float64 weights),
sums over positions are float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import CELLS, NORM_EPS, Backend, RecurrentWeights
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
    recurrent = weights.num_layers * weights.recurrent_weight.numel()
    numbers = sum(x.numel() for x in weights.tensors) + 2 * recurrent
    numbers += distinct * shape.input_rows * hidden_size
    numbers += batch_size * hidden_size * (2 * shape.input_rows + 2 * shape.recurrent_rows + 8 * weights.num_layers)
    return max(1, int(population_bytes(weights) / (2 * size * numbers)))


def _members(
    backend: Backend, weights: RecurrentWeights, seeds: Tensor, eps: float, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Returns each parameter by name at theta + eps * p and theta - eps * p, as [2n, ...] of `dtype`."""
    alpha, members = torch.tensor(eps, dtype=torch.float64), {}
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
    """Returns the sums of nats of one chunk of probes, float64 [n, 2]. M in the names of shapes is 2n."""
    dtype = torch.float64 if weights.bias.dtype == torch.float64 else torch.float32
    moved = _members(backend, weights, seeds, eps, dtype)
    layers = [_Layer(weights.cell, *(moved[name] for name in ("input_weight", "recurrent_weight", "bias")))]
    for above in range(weights.num_layers - 1):
        upper = (moved[f"upper_{name}"][:, above] for name in ("input_weight", "recurrent_weight", "bias"))
        layers.append(_Layer(weights.cell, *upper))
    members, _, heads, dim, _ = moved["input_weight"].shape
    batch_size, num_steps = index_BT.shape
    table_MVG = layers[0].project(moved["embedding"][:, distinct])
    current = [state.flatten(0, 1) for state in states] or [
        table_MVG.new_zeros(members, len(layers) * heads, batch_size, dim) for _ in range(CELLS[weights.cell].states)
    ]
    block = max(1, _HIDDEN_BYTES // (current[0].numel() * current[0].element_size()))
    total, outputs, first = torch.zeros(members, dtype=torch.float64, device=table_MVG.device), [], 0
    for t in range(num_steps):
        projected_MBG, y_MBH, after = table_MVG[:, index_BT[:, t]], table_MVG, []
        for index, layer in enumerate(layers):
            if index > 0:
                projected_MBG = layer.project(y_MBH)
            after.append(layer.step(projected_MBG, [state.chunk(len(layers), 1)[index] for state in current]))
            below_MBH, y_MBH = y_MBH, after[-1][0].transpose(1, 2).flatten(2)
            if "norm_weight" in moved:
                weight_M1H, bias_M1H = (moved[name][:, index, None] for name in ("norm_weight", "norm_bias"))
                y_MBH = torch.addcmul(bias_M1H, F.layer_norm(y_MBH, y_MBH.shape[2:], eps=NORM_EPS), weight_M1H)
            if weights.residual and index > 0:
                y_MBH = y_MBH + below_MBH
        current = [torch.cat(parts, 1) if len(parts) > 1 else parts[0] for parts in zip(*after, strict=True)]
        outputs.append(y_MBH)
        if len(outputs) == block or t == num_steps - 1:
            outputs_TBMH = torch.stack(outputs).transpose(1, 2)
            total += nats(outputs_TBMH, moved["output_weight"], moved["output_bias"], targets_BT[:, first : t + 1].t())
            outputs, first = [], t + 1
    for state, last in zip(states, current, strict=False):
        state.copy_(last.view_as(state))
    return total.view(-1, 2)


class _Layer:
    """One layer of all members.

    input_weight: [M, input rows, N, D, K], with K inputs. recurrent_weight: [M, recurrent rows, N, D, D].
    bias: [M, biases, N, D].
    """

    def __init__(self, cell: str, input_weight: Tensor, recurrent_weight: Tensor, bias: Tensor) -> None:
        self._cell, self._shape = cell, CELLS[cell]
        self._heads, self._dim = bias.shape[2:]
        self._in_MKG = input_weight.flatten(1, 3).transpose(1, 2)  # G row, head and unit
        self._r_MNPK = recurrent_weight.permute(0, 2, 4, 1, 3).flatten(3).contiguous()  # P previous, K row and unit
        self._b_MGN1D = bias[:, :, :, None]

    def project(self, x_MBK: Tensor) -> Tensor:
        """The input projection [M, B, input rows * N * D]."""
        return torch.bmm(x_MBK, self._in_MKG)

    def step(self, projected_MBG: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
        """The states [M, N, B, D] after one more input, of which the projection is given."""
        x_MNBID = projected_MBG.unflatten(2, (self._shape.input_rows, self._heads, self._dim)).permute(0, 3, 1, 2, 4)
        r_MNBRD = torch.matmul(states[0], self._r_MNPK).unflatten(3, (self._shape.recurrent_rows, self._dim))
        return _cell(self._cell, x_MNBID.unbind(3), r_MNBRD.unbind(3), self._b_MGN1D.unbind(1), states)


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
