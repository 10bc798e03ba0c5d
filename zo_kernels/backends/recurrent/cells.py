"""A time step of recurrent layers for many members: products in torch, cells in torch or in one Triton kernel.

Shape suffixes: M members, B batch, N heads, D units of a head, H = N * D, X rows of projected inputs, K and G gates of
a head and of all heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import CELLS, NORM_EPS, RecurrentWeights
from .fused_cell import fused_cell

Running = list[list[Tensor]]
"""The states of each layer, each [M, N, B, D]."""


class Stack:
    """The layers of all members, with what lies between them.

    moved: the parameters of the members by name, each [M, ...], float32 or float64.
    """

    def __init__(self, weights: RecurrentWeights, moved: Mapping[str, Tensor]) -> None:
        self._cell, self._residual, self._moved = weights.cell, weights.residual, moved
        names = ("input_weight", "recurrent_weight", "bias")
        self._layers = [_Layer(weights.cell, *(moved[name] for name in names))]
        for above in range(weights.num_layers - 1):
            self._layers.append(_Layer(weights.cell, *(moved[f"upper_{name}"][:, above] for name in names)))

    def table(self, tokens: Tensor) -> Tensor:
        """The input projections [M, X, G] of tokens [X]."""
        return self._layers[0].project(self._moved["embedding"][:, tokens])

    def start(self, states: Sequence[Tensor], batch_size: int) -> Running:
        """Copies of states [M, L * N, B, D] by layer; zeros if there are none."""
        count = len(self._layers)
        if states:
            return [[part.clone() for part in of] for of in zip(*(s.chunk(count, 1) for s in states), strict=True)]
        bias = self._moved["bias"]
        shape = len(bias), bias.shape[2], batch_size, bias.shape[3]
        return [[bias.new_zeros(shape) for _ in range(CELLS[self._cell].states)] for _ in range(count)]

    def step(self, table_MXG: Tensor, index_B: Tensor, running: Running, out_MBH: Tensor) -> Running:
        """Reads the tokens with these rows of the table, writes the outputs, and returns the states after it.

        The states before it may be overwritten.
        """
        after: Running = []
        rows, y_MBH = table_MXG, out_MBH
        index: Tensor | None = index_B
        for number, (layer, states) in enumerate(zip(self._layers, running, strict=True)):
            below_MBH, y_MBH = y_MBH, out_MBH if number == len(running) - 1 else torch.empty_like(out_MBH)
            if number > 0:
                rows, index = layer.project(below_MBH), None
            after.append(layer.step(rows, index, states, y_MBH))
            if "norm_weight" in self._moved:
                weight_M1H, bias_M1H = (self._moved[name][:, number, None] for name in ("norm_weight", "norm_bias"))
                normal_MBH = F.layer_norm(y_MBH, y_MBH.shape[2:], eps=NORM_EPS)
                torch.addcmul(bias_M1H, normal_MBH, weight_M1H, out=y_MBH)
            if self._residual and number > 0:
                y_MBH += below_MBH
        return after


def joined(running: Running) -> list[Tensor]:
    """The states [M, L * N, B, D] of all layers."""
    return [torch.cat(parts, 1) if len(parts) > 1 else parts[0] for parts in zip(*running, strict=True)]


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
        self._bias_MGND = bias
        self._fused = fused_cell(bias.device, bias.dtype)

    def project(self, x_MBK: Tensor) -> Tensor:
        """The input projection [M, B, input rows * N * D]."""
        return torch.bmm(x_MBK, self._in_MKG)

    def step(self, rows_MXG: Tensor, index_B: Tensor | None, states: Sequence[Tensor], out_MBH: Tensor) -> list[Tensor]:
        """The states [M, N, B, D] after one more input, and its hidden states to out_MBH.

        The input's projection is row index_B of rows_MXG, or one row for each sequence. The states may be overwritten.
        """
        r_MNBK = torch.matmul(states[0], self._r_MNPK)
        if self._fused is not None:
            self._fused(self._cell, rows_MXG, index_B, r_MNBK, self._bias_MGND, states, out_MBH)
            return list(states)
        projected_MBG = rows_MXG if index_B is None else rows_MXG[:, index_B]
        x_MNBID = projected_MBG.unflatten(2, (self._shape.input_rows, self._heads, self._dim)).permute(0, 3, 1, 2, 4)
        r_MNBRD = r_MNBK.unflatten(3, (self._shape.recurrent_rows, self._dim))
        b_MGN1D = self._bias_MGND[:, :, :, None]
        after = cell_states(self._cell, x_MNBID.unbind(3), r_MNBRD.unbind(3), b_MGN1D.unbind(1), states)
        out_MBH.unflatten(2, (self._heads, self._dim)).copy_(after[0].transpose(1, 2))
        return after


def cell_states(
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
