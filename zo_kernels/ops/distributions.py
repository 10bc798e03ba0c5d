"""The ops for probes of any distribution (`zo_kernels.distributions`), as torch sees them.

Those of `schema` with the distribution's name before the other arguments. Rademacher probes have ops of their own
because their sums are integers and their kernels faster; by either way they are the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..backends import backend_for
from ..backends.base import Update
from ..distributions import check_distribution, is_exact_in_place
from .checks import (
    check_dtype,
    check_offset,
    check_out,
    check_overlap,
    check_rows,
    check_scalar,
    check_tensor,
    check_update,
)
from .quantise import quantise
from .schema import library, mark_written

_LARGEST_SUM = 2.0**124  # no element of a probe reaches 8, so sums stay float32 numbers

library.define(
    "probe_from(str distribution, SymInt numel, SymInt seed, *, SymInt offset, ScalarType dtype, Device device)"
    " -> Tensor"
)
library.define("apply_probe_from_(str distribution, Tensor(a!) x, float alpha, SymInt seed, *, SymInt offset) -> ()")
library.define(
    "apply_probe_from(str distribution, Tensor x, float alpha, SymInt seed, *, SymInt offset, ScalarType dtype)"
    " -> Tensor"
)
library.define(
    "apply_probe_from_out(str distribution, Tensor x, Tensor(a!) out, float alpha, SymInt seed, *, SymInt offset) -> ()"
)
library.define(
    "accumulate_probes_from_(str distribution, Tensor(a!) x, Tensor coeffs, Tensor seeds, *, SymInt offset, "
    "float decay, float grid, float undo_alpha, SymInt undo_seed) -> ()"
)


def _summands(distribution: str, coeffs: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], float]:
    """Coefficients and what to multiply their sums with: integers, so that sums are exact, where elements are."""
    if is_exact_in_place(distribution):
        quantised, shift = quantise(coeffs)
        return quantised.astype(np.float64), 2.0**-shift
    if not np.isfinite(coeffs).all():
        at = int(np.flatnonzero(~np.isfinite(coeffs))[0])
        raise ValueError(f"coefficients must be finite, but coeffs[{at}] is {coeffs[at]}")
    with np.errstate(over="ignore"):
        total = float(np.abs(coeffs).sum())
    if total >= _LARGEST_SUM:
        raise ValueError(f"coefficients are too large for float32: their absolute sum is {total:g}, not below 2^124")
    return np.ascontiguousarray(coeffs), 1.0


def _probe_fake(
    distribution: str, numel: int, seed: int, *, offset: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    check_distribution(distribution)
    check_dtype(dtype)
    check_offset(offset, numel)
    return torch.empty(numel, dtype=dtype, device=device)


def _probe(
    distribution: str, numel: int, seed: int, *, offset: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    out = _probe_fake(distribution, numel, seed, offset=offset, dtype=dtype, device=device)
    if not out.is_meta:
        backend_for(out.device.type).probe_from(distribution, out, seed, offset)
    return out


def _inplace_fake(distribution: str, x: Tensor, alpha: float, seed: int, *, offset: int) -> None:
    check_distribution(distribution)
    check_tensor(x)
    check_offset(offset, x.numel())


def _inplace(distribution: str, x: Tensor, alpha: float, seed: int, *, offset: int) -> None:
    _inplace_fake(distribution, x, alpha, seed, offset=offset)
    check_scalar(alpha, "alpha", x.dtype)
    backend_for(x.device.type).apply_probe_from(distribution, x, x, alpha, seed, offset)
    mark_written(x)


def _apply_fake(distribution: str, x: Tensor, alpha: float, seed: int, *, offset: int, dtype: torch.dtype) -> Tensor:
    _inplace_fake(distribution, x, alpha, seed, offset=offset)
    check_dtype(dtype)
    return torch.empty_like(x, dtype=dtype)


def _apply(distribution: str, x: Tensor, alpha: float, seed: int, *, offset: int, dtype: torch.dtype) -> Tensor:
    out = _apply_fake(distribution, x, alpha, seed, offset=offset, dtype=dtype)
    check_scalar(alpha, "alpha", x.dtype)
    backend_for(x.device.type).apply_probe_from(distribution, x, out, alpha, seed, offset)
    return out


def _out_fake(distribution: str, x: Tensor, out: Tensor, alpha: float, seed: int, *, offset: int) -> None:
    _inplace_fake(distribution, x, alpha, seed, offset=offset)
    check_out(x, out)


def _out(distribution: str, x: Tensor, out: Tensor, alpha: float, seed: int, *, offset: int) -> None:
    _out_fake(distribution, x, out, alpha, seed, offset=offset)
    check_overlap(x, out)
    check_scalar(alpha, "alpha", x.dtype)
    backend_for(x.device.type).apply_probe_from(distribution, x, out, alpha, seed, offset)
    mark_written(out)


def _accumulate_fake(
    distribution: str,
    x: Tensor,
    coeffs: Tensor,
    seeds: Tensor,
    *,
    offset: int,
    decay: float,
    grid: float,
    undo_alpha: float,
    undo_seed: int,
) -> None:
    check_distribution(distribution)
    check_tensor(x)
    check_rows(x, coeffs, seeds)
    check_offset(offset, x.numel())


def _accumulate(
    distribution: str,
    x: Tensor,
    coeffs: Tensor,
    seeds: Tensor,
    *,
    offset: int,
    decay: float,
    grid: float,
    undo_alpha: float,
    undo_seed: int,
) -> None:
    check_distribution(distribution)
    check_tensor(x)
    check_rows(x, coeffs, seeds)
    check_offset(offset, x.numel())
    check_update(decay, grid, undo_alpha, x.dtype)
    summands, scale = _summands(distribution, coeffs.numpy(force=True))
    update = Update(undo_alpha, undo_seed, decay, grid)
    rows = seeds.contiguous().numpy(force=True)
    backend_for(x.device.type).accumulate_probes_from(distribution, x, summands, scale, rows, offset, update)
    mark_written(x)


for _name, _implementation, _fake in (
    ("probe_from", _probe, _probe_fake),
    ("apply_probe_from_", _inplace, _inplace_fake),
    ("apply_probe_from", _apply, _apply_fake),
    ("apply_probe_from_out", _out, _out_fake),
    ("accumulate_probes_from_", _accumulate, _accumulate_fake),
):
    library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"zo_kernels::{_name}", _fake, lib=library)
