"""Layers for M members at once. Weights are [M, ...], inputs are [M, B, features]."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x_MBI: Tensor, weight_MOI: Tensor, bias_MO: Tensor) -> Tensor:
    """x @ weight^T + bias for each member: [M, B, O]."""
    return torch.baddbmm(bias_MO[:, None], x_MBI, weight_MOI.transpose(1, 2))


def layer_norm(x_MBI: Tensor, weight_MI: Tensor, bias_MI: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-5) * weight + bias, with mean and variance over the features."""
    return torch.addcmul(bias_MI[:, None], F.layer_norm(x_MBI, x_MBI.shape[-1:]), weight_MI[:, None])


def lstm_cell(gates_MBG: Tensor, c_MBH: Tensor) -> tuple[Tensor, Tensor]:
    """An LSTM step: h and c from c and the pre-activations [M, B, 4H] of the gates, in the order i, f, z, o."""
    i, f, z, o = gates_MBG.chunk(4, dim=-1)
    c = torch.addcmul(torch.sigmoid(f) * c_MBH, torch.sigmoid(i), torch.tanh(z))
    return torch.sigmoid(o) * torch.tanh(c), c
