"""Gradient agreement filtering: which of the micro-gradients of a step to average."""

from __future__ import annotations

import torch
from torch import Tensor


def agree(micro_coeffs: Tensor, max_cosine_distance: float) -> tuple[Tensor, Tensor]:
    """Gradient Agreement Filtering: Chaubard, Eyre and Kochenderfer, arXiv 2412.18052.

    micro_coeffs: float [m, n], m >= 2 micro-gradients, one a row: dense ones over n parameters, or their coefficients
    over the same n probes, whose cosines are those of the gradients written out up to O(n/sqrt d). Starts with the
    first, goes through the others in order and adds each whose cosine distance to the running sum, 1 - cos, is at most
    max_cosine_distance; that of a zero vector is 1.

    Returns the mean of those kept, [n] (zero, so no update, where the first stays alone), and which they are, bool [m].
    Raises ValueError for another shape, values that are not finite, or max_cosine_distance outside [0, 2], and
    TypeError for anything but floating-point numbers. Cosines are rounded: a limit of 0 may drop equal micro-gradients.
    """
    if not micro_coeffs.is_floating_point():
        raise TypeError(f"micro-gradients must be floating-point numbers, not {micro_coeffs.dtype}")
    if micro_coeffs.dim() != 2 or len(micro_coeffs) < 2:
        raise ValueError(
            f"agreement takes two or more micro-gradients [m, n], not a tensor of shape {tuple(micro_coeffs.shape)}"
        )
    if not 0 <= max_cosine_distance <= 2:
        raise ValueError(f"max_cosine_distance must be in [0, 2], not {max_cosine_distance}")
    if not bool(micro_coeffs.isfinite().all()):
        raise ValueError("micro-gradients must be finite: leave a batch or probe whose loss is not out of all of them")
    total = micro_coeffs[0].clone()
    kept = torch.zeros(len(micro_coeffs), dtype=torch.bool)
    kept[0] = True
    for i, micro in enumerate(micro_coeffs[1:], start=1):
        if 1.0 - _cosine(total, micro) <= max_cosine_distance:
            total += micro
            kept[i] = True
    count = int(kept.sum())
    return (total / count if count > 1 else total.zero_()), kept


def _cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between vectors, within -1 and 1; 0 if one is zero."""
    for x in (a, b):
        if not bool(x.any()):
            return 0.0
    a, b = a / a.abs().max(), b / b.abs().max()  # so that squares neither overflow nor all underflow
    lengths = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return min(1.0, max(-1.0, float(torch.dot(a, b) / lengths)))
