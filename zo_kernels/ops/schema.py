"""The ops as torch sees them: each with its schema, what it mutates, its shape function and its implementation.

The implementation is one for all devices and asks `zo_kernels.backends` who computes; `zo_kernels.ops` has the typed
functions that people call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import backend_for
from ..backends.base import Update
from .checks import (
    check_apart,
    check_dtype,
    check_members,
    check_offset,
    check_out,
    check_overlap,
    check_rows,
    check_scalar,
    check_tensor,
    check_update,
)
from .quantise import quantise

library = torch.library.Library("zo_kernels", "DEF")

# No defaults: torch leaves out arguments that equal theirs, and a subnormal equals 0 where a thread flushes them.
library.define("probe(SymInt numel, SymInt seed, *, SymInt offset, ScalarType dtype, Device device) -> Tensor")
library.define("apply_probe_(Tensor(a!) x, float alpha, SymInt seed, *, SymInt offset) -> ()")
library.define("apply_probe(Tensor x, float alpha, SymInt seed, *, SymInt offset, ScalarType dtype) -> Tensor")
library.define("apply_probe_out(Tensor x, Tensor(a!) out, float alpha, SymInt seed, *, SymInt offset) -> ()")
library.define("apply_probes(Tensor x, Tensor(a!) out, Tensor alpha, Tensor seeds, *, SymInt offset) -> ()")
library.define(
    "swap_probe_(Tensor(a!) x, float alpha, SymInt seed, float next_alpha, SymInt next_seed, *, SymInt offset) -> ()"
)
library.define(
    "accumulate_probes_(Tensor(a!) x, Tensor coeffs, Tensor seeds, *, SymInt offset, float decay, "
    "float grid, float undo_alpha, SymInt undo_seed) -> ()"
)


def mark_written(x: Tensor) -> None:
    """Tells autograd that x has changed: an op of a Library does not do it by itself."""
    if not x.is_inference():
        torch.autograd.graph.increment_version(x)


def _probe_fake(numel: int, seed: int, *, offset: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    check_dtype(dtype)
    check_offset(offset, numel)
    return torch.empty(numel, dtype=dtype, device=device)


def _probe(numel: int, seed: int, *, offset: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    out = _probe_fake(numel, seed, offset=offset, dtype=dtype, device=device)
    if out.is_meta:
        return out
    backend_for(out.device.type).probe(out, seed, offset)
    return out


def _apply_probe_inplace_fake(x: Tensor, alpha: float, seed: int, *, offset: int) -> None:
    check_tensor(x)
    check_offset(offset, x.numel())


def _apply_probe_inplace(x: Tensor, alpha: float, seed: int, *, offset: int) -> None:
    check_tensor(x)
    check_offset(offset, x.numel())
    check_scalar(alpha, "alpha", x.dtype)
    backend_for(x.device.type).apply_probe(x, x, alpha, seed, offset)
    mark_written(x)


def _apply_probe_fake(x: Tensor, alpha: float, seed: int, *, offset: int, dtype: torch.dtype) -> Tensor:
    check_tensor(x)
    check_dtype(dtype)
    check_offset(offset, x.numel())
    return torch.empty_like(x, dtype=dtype)


def _apply_probe(x: Tensor, alpha: float, seed: int, *, offset: int, dtype: torch.dtype) -> Tensor:
    out = _apply_probe_fake(x, alpha, seed, offset=offset, dtype=dtype)
    check_scalar(alpha, "alpha", x.dtype)
    backend_for(x.device.type).apply_probe(x, out, alpha, seed, offset)
    return out


def _apply_probe_out_fake(x: Tensor, out: Tensor, alpha: float, seed: int, *, offset: int) -> None:
    check_tensor(x)
    check_out(x, out)
    check_offset(offset, x.numel())


def _apply_probe_out(x: Tensor, out: Tensor, alpha: float, seed: int, *, offset: int) -> None:
    _apply_probe_out_fake(x, out, alpha, seed, offset=offset)
    check_overlap(x, out)
    check_scalar(alpha, "alpha", x.dtype)
    backend_for(x.device.type).apply_probe(x, out, alpha, seed, offset)
    mark_written(out)


def _apply_probes_fake(x: Tensor, out: Tensor, alpha: Tensor, seeds: Tensor, *, offset: int) -> None:
    check_tensor(x)
    check_members(x, out, alpha, seeds)
    check_offset(offset, x.numel())


def _apply_probes(x: Tensor, out: Tensor, alpha: Tensor, seeds: Tensor, *, offset: int) -> None:
    _apply_probes_fake(x, out, alpha, seeds, offset=offset)
    check_apart(x, out)
    if alpha.device.type == "cpu":  # elsewhere, reading it would wait for the device
        check_scalar(float(alpha), "alpha", x.dtype)
    backend_for(x.device.type).apply_probes(x, out, alpha, seeds.contiguous(), offset)
    mark_written(out)


def _swap_probe_fake(x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, *, offset: int) -> None:
    check_tensor(x)
    check_offset(offset, x.numel())


def _swap_probe(x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, *, offset: int) -> None:
    check_tensor(x)
    check_offset(offset, x.numel())
    check_scalar(alpha, "alpha", x.dtype)
    check_scalar(next_alpha, "next_alpha", x.dtype)
    backend_for(x.device.type).swap_probe(x, alpha, seed, next_alpha, next_seed, offset)
    mark_written(x)


def _accumulate_probes_fake(
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
    check_tensor(x)
    check_rows(x, coeffs, seeds)
    check_offset(offset, x.numel())


def _accumulate_probes(
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
    check_tensor(x)
    check_rows(x, coeffs, seeds)
    check_offset(offset, x.numel())
    check_update(decay, grid, undo_alpha, x.dtype)
    quantised, shift = quantise(coeffs.numpy(force=True))
    update = Update(undo_alpha, undo_seed, decay, grid)
    rows = seeds.contiguous().numpy(force=True)
    backend_for(x.device.type).accumulate_probes(x, quantised, shift, rows, offset, update)
    mark_written(x)


for _name, _implementation, _fake in (
    ("probe", _probe, _probe_fake),
    ("apply_probe_", _apply_probe_inplace, _apply_probe_inplace_fake),
    ("apply_probe", _apply_probe, _apply_probe_fake),
    ("apply_probe_out", _apply_probe_out, _apply_probe_out_fake),
    ("apply_probes", _apply_probes, _apply_probes_fake),
    ("swap_probe_", _swap_probe, _swap_probe_fake),
    ("accumulate_probes_", _accumulate_probes, _accumulate_probes_fake),
):
    library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"zo_kernels::{_name}", _fake, lib=library)
