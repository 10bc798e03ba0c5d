"""Output projection and cross-entropy, tile by tile, so that the logits of all positions never exist at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

TILE_BYTES = 64 << 20
"""Bytes of the logits of a tile; cross-entropy takes as much again."""

_FEW_POSITIONS = 64
"""Members share a tile as long as it holds this many positions of each: a product of fewer rows is slow."""


def products(left: Tensor, right: Tensor) -> Tensor:
    """Returns left [M, X, H] @ right [M, H, Y], in float32 for 16-bit factors, else in their dtype."""
    if left.dtype.itemsize >= 4:
        return torch.bmm(left, right)
    if left.is_cuda and not torch.is_grad_enabled():
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


def logits(hidden_MXH: Tensor, output_weight_MVH: Tensor, output_bias_MV: Tensor) -> Tensor:
    """Returns logits [M, X, V] of M members at X positions, float32 (float64 for float64 parameters)."""
    return products(hidden_MXH, output_weight_MVH.transpose(1, 2)) + output_bias_MV[:, None]


def summed_nats(logits_MXV: Tensor, targets_X: Tensor) -> Tensor:
    """Returns the cross-entropy in nats of M members, summed over X positions: float64 [M]."""
    targets_MX = targets_X.expand(len(logits_MXV), -1)
    losses = F.cross_entropy(logits_MXV.flatten(0, 1), targets_MX.flatten(), reduction="none")  # 0 where not scored
    return losses.view(targets_MX.shape).sum(1, dtype=torch.float64)


def nats(hidden_TBMH: Tensor, output_weight_MVH: Tensor, output_bias_MV: Tensor, targets_TB: Tensor) -> Tensor:
    """Returns the cross-entropy in nats of M members, summed over the scored positions: float64 [M].

    Logits and cross-entropy are float32 (float64 for float64 parameters). targets_TB is int64, -100 where a position is
    not scored. Does not wait for the device.
    """
    hidden_MXH = hidden_TBMH.flatten(0, 1).transpose(0, 1)
    targets_X = targets_TB.flatten()
    (members, positions, _), vocab_size = hidden_MXH.shape, output_weight_MVH.shape[1]
    element_size = 8 if output_bias_MV.dtype == torch.float64 else 4
    some = max(1, min(members, TILE_BYTES // (element_size * vocab_size * min(positions, _FEW_POSITIONS))))
    tile = max(1, TILE_BYTES // (element_size * vocab_size * some))
    sums = []
    for member in range(0, members, some):
        part = slice(member, member + some)
        total = torch.zeros(len(output_bias_MV[part]), dtype=torch.float64, device=hidden_TBMH.device)
        for start in range(0, positions, tile):
            scores = logits(hidden_MXH[part, start : start + tile], output_weight_MVH[part], output_bias_MV[part])
            total = total + summed_nats(scores, targets_X[start : start + tile])
        sums.append(total)
    return torch.cat(sums)
