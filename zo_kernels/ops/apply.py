"""The ops that move a tensor along one probe at a time: `probe`, `apply_probe`, `apply_probes`, `swap_probe_`.

Each op is written out in one place: what its fake checks, its implementation, its schema, and the function that users
call. See `zo_kernels.ops` for what all of them have in common.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..backends import backend_for
from .checks import (
    INTEGERS,
    check_apart,
    check_call,
    check_dtype,
    check_members,
    check_no_grad,
    check_offset,
    check_out,
    check_overlap,
    check_probe,
    check_scalar,
    check_tensor,
    check_writable,
    seed_to_int64,
    seeds_to_tensor,
)
from .library import register


def _probe_fake(
    numel: int, seed: int, *, offset: int, dtype: torch.dtype, device: torch.device, distribution: str = "rademacher"
) -> Tensor:
    check_dtype(dtype)
    check_probe(numel, offset, distribution)
    return torch.empty(numel, dtype=dtype, device=device)


def _probe(
    numel: int, seed: int, *, offset: int, dtype: torch.dtype, device: torch.device, distribution: str = "rademacher"
) -> Tensor:
    out = _probe_fake(numel, seed, offset=offset, dtype=dtype, device=device, distribution=distribution)
    if not out.is_meta:
        backend_for(out.device.type).probe(out, seed, offset, distribution)
    return out


_probe_op = register(
    "probe(SymInt numel, SymInt seed, *, SymInt offset, ScalarType dtype, Device device, "
    'str distribution="rademacher") -> Tensor',
    _probe,
    _probe_fake,
)


def probe(
    numel: int,
    seed: int,
    *,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    distribution: str = "rademacher",
) -> Tensor:
    """Returns elements offset .. offset + numel of p(seed): Tensor [numel] of `dtype` on `device`.

    distribution, here and in the ops below: "rademacher" (+1 or -1), "normal", "uniform" (all three of variance 1) or
    "sparse-K" (+1 or -1 with probability 1/K, else 0, where K is a power of two from 2 to 65536).
    """
    if not isinstance(numel, INTEGERS):
        raise TypeError(f"numel must be an integer, not {numel!r}")
    if numel < 0:
        raise ValueError(f"numel must not be negative, but is {numel}")
    check_call(offset, distribution)
    seed, device = seed_to_int64(seed), torch.device(device)
    return _probe_op(numel, seed, offset=offset, dtype=dtype, device=device, distribution=distribution)


def _apply_in_place_fake(x: Tensor, alpha: float, seed: int, *, offset: int, distribution: str = "rademacher") -> None:
    check_tensor(x)
    check_probe(x.numel(), offset, distribution)


def _apply_in_place(x: Tensor, alpha: float, seed: int, *, offset: int, distribution: str = "rademacher") -> None:
    check_tensor(x)
    check_probe(x.numel(), offset, distribution)
    check_scalar(alpha, "alpha", x.dtype)
    backend_for(x.device.type).apply_probe(x, x, alpha, seed, offset, distribution)
    increment_version(x)


_apply_in_place_op = register(
    'apply_probe_(Tensor(a!) x, float alpha, SymInt seed, *, SymInt offset, str distribution="rademacher") -> ()',
    _apply_in_place,
    _apply_in_place_fake,
)


def apply_probe_(x: Tensor, alpha: float, seed: int, *, offset: int = 0, distribution: str = "rademacher") -> Tensor:
    """Adds alpha * p(seed) to x, in one pass and without a temporary. Returns x."""
    check_writable(x)
    check_call(offset, distribution)
    _apply_in_place_op(x, alpha, seed_to_int64(seed), offset=offset, distribution=distribution)
    return x


def _apply_fake(
    x: Tensor, alpha: float, seed: int, *, offset: int, dtype: torch.dtype, distribution: str = "rademacher"
) -> Tensor:
    check_tensor(x)
    check_dtype(dtype)
    check_probe(x.numel(), offset, distribution)
    return torch.empty_like(x, dtype=dtype)


def _apply(
    x: Tensor, alpha: float, seed: int, *, offset: int, dtype: torch.dtype, distribution: str = "rademacher"
) -> Tensor:
    out = _apply_fake(x, alpha, seed, offset=offset, dtype=dtype, distribution=distribution)
    check_scalar(alpha, "alpha", x.dtype)
    backend_for(x.device.type).apply_probe(x, out, alpha, seed, offset, distribution)
    return out


_apply_op = register(
    "apply_probe(Tensor x, float alpha, SymInt seed, *, SymInt offset, ScalarType dtype, "
    'str distribution="rademacher") -> Tensor',
    _apply,
    _apply_fake,
)


def _apply_out_fake(
    x: Tensor, out: Tensor, alpha: float, seed: int, *, offset: int, distribution: str = "rademacher"
) -> None:
    check_tensor(x)
    check_out(x, out)
    check_probe(x.numel(), offset, distribution)


def _apply_out(
    x: Tensor, out: Tensor, alpha: float, seed: int, *, offset: int, distribution: str = "rademacher"
) -> None:
    _apply_out_fake(x, out, alpha, seed, offset=offset, distribution=distribution)
    check_overlap(x, out)
    check_scalar(alpha, "alpha", x.dtype)
    backend_for(x.device.type).apply_probe(x, out, alpha, seed, offset, distribution)
    increment_version(out)


_apply_out_op = register(
    "apply_probe_out(Tensor x, Tensor(a!) out, float alpha, SymInt seed, *, SymInt offset, "
    'str distribution="rademacher") -> ()',
    _apply_out,
    _apply_out_fake,
)


def apply_probe(
    x: Tensor,
    alpha: float,
    seed: int,
    *,
    offset: int = 0,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
    distribution: str = "rademacher",
) -> Tensor:
    """Returns x + alpha * p(seed), rounded once to the result's dtype. x is not changed.

    The result is written into `out` (of x's shape, on x's device, either x itself or separate memory) if that is given,
    else into a new tensor of `dtype`, which defaults to x's.
    """
    check_no_grad(x)
    check_call(offset, distribution)
    seed = seed_to_int64(seed)
    if out is None:
        return _apply_op(x, alpha, seed, offset=offset, dtype=dtype or x.dtype, distribution=distribution)
    if dtype is not None and dtype != out.dtype:
        raise TypeError(f"dtype is {dtype}, but out has {out.dtype}: give one of them")
    check_writable(out, "out")
    _apply_out_op(x, out, alpha, seed, offset=offset, distribution=distribution)
    return out


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
    increment_version(out)


_apply_probes_op = register(
    "apply_probes(Tensor x, Tensor(a!) out, Tensor alpha, Tensor seeds, *, SymInt offset) -> ()",
    _apply_probes,
    _apply_probes_fake,
)


def apply_probes(
    x: Tensor,
    alpha: float | Tensor,
    seeds: Tensor | Sequence[int] | npt.NDArray[np.int64],
    *,
    offset: int = 0,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Returns x + alpha * p and x - alpha * p for n Rademacher probes: Tensor [n, 2, *x.shape].

    [i, 0] of the result is `apply_probe(x, alpha, seeds[i])` and [i, 1] is `apply_probe(x, -alpha, seeds[i])`, each
    element rounded once. It is written into `out` (on x's device, in separate memory) if that is given, else into a new
    tensor of `dtype`, which defaults to x's.

    alpha is a float, or a float64 tensor of one element. It and seeds [n] may lie on the CPU or on x's device. On a
    CUDA device the kernel reads them when it runs, so a CUDA graph that captured the call can be replayed with other
    values in their place. Such an alpha is not checked for being finite.
    """
    check_no_grad(x)
    check_call(offset)
    seeds = seeds_to_tensor(seeds)
    if not isinstance(alpha, Tensor):
        alpha = torch.tensor(alpha, dtype=torch.float64)
    if out is None:
        out = x.new_empty((seeds.numel(), 2, *x.shape), dtype=dtype or x.dtype)
    elif dtype is not None and dtype != out.dtype:
        raise TypeError(f"dtype is {dtype}, but out has {out.dtype}: give one of them")
    check_writable(out, "out")
    _apply_probes_op(x, out, alpha, seeds, offset=offset)
    return out


def _swap_fake(x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, *, offset: int) -> None:
    check_tensor(x)
    check_offset(offset, x.numel())


def _swap(x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, *, offset: int) -> None:
    check_tensor(x)
    check_offset(offset, x.numel())
    check_scalar(alpha, "alpha", x.dtype)
    check_scalar(next_alpha, "next_alpha", x.dtype)
    backend_for(x.device.type).swap_probe(x, alpha, seed, next_alpha, next_seed, offset)
    increment_version(x)


_swap_op = register(
    "swap_probe_(Tensor(a!) x, float alpha, SymInt seed, float next_alpha, SymInt next_seed, *, SymInt offset) -> ()",
    _swap,
    _swap_fake,
)


def swap_probe_(x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, *, offset: int = 0) -> Tensor:
    """Adds alpha * p(seed), then next_alpha * p(next_seed), to x in one pass, for Rademacher probes. Returns x.

    This leaves one probe and enters the next. Both sums are rounded, so the result is that of two calls of
    `apply_probe_`, except that for 16-bit dtypes the first sum stays in float32.
    """
    check_writable(x)
    check_call(offset)
    _swap_op(x, alpha, seed_to_int64(seed), next_alpha, seed_to_int64(next_seed), offset=offset)
    return x
