"""The cells on pre-activations, and the derivatives of their hidden states. Rows are those of `CELLS`' biases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def advance(cell: str, rows_BGND: Tensor, states: Sequence[Tensor]) -> list[Tensor]:
    """Returns the states [B, N, D] after a step; see `zo_kernels.models` for the cells."""
    rows = rows_BGND.unbind(1)
    if cell == "lstm":
        i, f, z, o = rows
        c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(z)
        return [torch.sigmoid(o) * torch.tanh(c), c]
    if cell == "gru":
        g, r, z, n = rows
        z = torch.sigmoid(z)
        return [z * states[0] + (1 - z) * torch.tanh(n + torch.sigmoid(r) * g)]
    return [torch.tanh(rows[0])]


def local_rows(
    cell: str, rows_BGND: Tensor, before: Sequence[Tensor], after: Sequence[Tensor], outer_BND: Tensor
) -> Tensor:
    """Returns the gradient of sum(outer * h) with respect to the rows, [B, G, N, D], at fixed states before."""
    if cell == "lstm":
        i, f, z, o = rows_BGND.unbind(1)
        i, f, o, z = torch.sigmoid(i), torch.sigmoid(f), torch.sigmoid(o), torch.tanh(z)
        tanh_c = torch.tanh(after[1])
        of_c = outer_BND * o * (1 - tanh_c * tanh_c)
        by_gate = (
            of_c * z * i * (1 - i),
            of_c * before[1] * f * (1 - f),
            of_c * i * (1 - z * z),
            outer_BND * tanh_c * o * (1 - o),
        )
        return torch.stack(by_gate, 1)
    if cell == "gru":
        g, r, z, n = rows_BGND.unbind(1)
        r, z = torch.sigmoid(r), torch.sigmoid(z)
        candidate = torch.tanh(n + r * g)
        of_n = outer_BND * (1 - z) * (1 - candidate * candidate)
        return torch.stack(
            (of_n * r, of_n * g * r * (1 - r), outer_BND * (before[0] - candidate) * z * (1 - z), of_n), 1
        )
    return (outer_BND * (1 - after[0] * after[0]))[:, None]
