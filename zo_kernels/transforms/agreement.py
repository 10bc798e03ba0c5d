"""Gradient agreement filtering averages only those micro-gradients of a step that agree."""

from __future__ import annotations

import torch
from torch import Tensor


def agree(micro_coeffs: Tensor, max_cosine_distance: float) -> tuple[Tensor, Tensor]:
    """Gradient Agreement Filtering of Chaubard, Eyre and Kochenderfer, arXiv 2412.18052.

    The running sum starts with the first micro-gradient. The others follow in order, and one is added if its cosine
    distance to the running sum, 1 - cos, is at most max_cosine_distance. A zero vector has the distance 1. Cosines are
    rounded, so a limit of 0 may drop equal micro-gradients.

    micro_coeffs: float [m, n], m >= 2 micro-gradients in rows. They are dense, over n parameters, or coefficients of
        the same n probes; the cosine of coefficients is that of the dense gradients up to O(n/sqrt d).

    Returns the mean of the micro-gradients kept, [n], and a mask of them, bool [m]. If only the first was kept, the
    mean is replaced by 0. Raises ValueError for another shape, values that are not finite, or max_cosine_distance
    outside [0, 2]. Raises TypeError for a dtype that is not floating-point.
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
        raise ValueError("micro-gradients must be finite: leave out micro-batches and probes with a NaN or inf loss")
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
    """Cosine of the angle between two vectors, clamped to [-1, 1]; 0 if one of them is zero."""
    for x in (a, b):
        if not bool(x.any()):
            return 0.0
    a, b = a / a.abs().max(), b / b.abs().max()  # keeps squares from overflow and underflow
    lengths = torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b)
    return min(1.0, max(-1.0, float(torch.dot(a, b) / lengths)))
