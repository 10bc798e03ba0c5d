"""The ops on a list of tensors. The optimizer moves its parameters with these.

The kernels of the backends `cpu`, `cuda` and `triton` (the latter two not yet verified on a GPU) take all tensors of a
list in one call. `reference` goes from tensor to tensor.

They compute for each tensor what the op of the same name does, without torch's dispatcher: arguments are checked once
for all tensors, and autograd is not told of the writes.
"""

from __future__ import annotations

from torch import Tensor

from ..backends import backend_for
from ..backends.base import Update
from ..backends.pieces import Pieces
from .accumulate import factors_of
from .checks import check_scalar, check_update


def apply_probe_list(x: Pieces, out: Pieces, alpha: float, seed: int, distribution: str) -> None:
    """out = cast(x + alpha * p(seed)); out has the sizes and offsets of x, or is x. Raises as `apply_probe_` does."""
    check_scalar(alpha, "alpha", x.dtype)
    backend_for(x.device.type).apply_probe_list(x, out, alpha, seed, distribution)


def swap_probe_list(x: Pieces, alpha: float, seed: int, next_alpha: float, next_seed: int) -> None:
    """x = (x + alpha * p(seed)) + next_alpha * p(next_seed), for Rademacher probes. Raises as `swap_probe_` does."""
    check_scalar(alpha, "alpha", x.dtype)
    check_scalar(next_alpha, "next_alpha", x.dtype)
    backend_for(x.device.type).swap_probe_list(x, alpha, seed, next_alpha, next_seed)


def accumulate_probes_list(
    x: Pieces,
    coeffs: Tensor,
    seeds: Tensor,
    distribution: str,
    *,
    decay: float = 1.0,
    grid: float = 0.0,
    undo_alpha: float = 0.0,
    undo_seed: int = 0,
    rounding_seed: int | None = None,
) -> None:
    """Adds sum_i coeffs[i] * p(seeds[i]) to x, with the options and the errors of `accumulate_probes_`.

    coeffs: float64 [n]. seeds: int64 [n]. Both on the CPU.
    """
    check_update(decay, grid, undo_alpha, rounding_seed, x.dtype)
    factors, shift = factors_of(coeffs.contiguous().numpy(force=True), distribution)
    rows = seeds.contiguous().numpy(force=True)
    update = Update(undo_alpha, undo_seed, decay, grid, rounding_seed)
    backend_for(x.device.type).accumulate_probes_list(x, factors, shift, rows, update, distribution)
