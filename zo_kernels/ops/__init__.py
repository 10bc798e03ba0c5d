"""The kernels as functions on tensors.

p(seed) is the Rademacher probe of `zo_kernels.philox`, or with distribution= one of `zo_kernels.distributions`: element
i of a tensor is element j = offset + i of the flat parameter space, and p_j a function of (seed, distribution, j). All
ops take tensors of any shape, contiguous, of dtype float32, float64, bfloat16 or float16, and compute in float64 for
float64 tensors, else in float32, rounding to the dtype once. Every backend agrees to the last bit (NaN payloads apart).

Seeds are integers modulo 2^64 (Python integers in [-2^63, 2^64), or int64 tensors holding the 64 bits). None of the ops
is differentiable: call them under `torch.no_grad()` on tensors that require gradients.

All raise TypeError for a wrong dtype and ValueError for a wrong shape, device, layout, offset, distribution or a scalar
that is not finite; nothing is written then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..distributions import check_distribution
from . import distributions as _distributions  # noqa: F401  (registers ops, as does schema)
from . import schema as _schema  # noqa: F401
from .recurrent import recurrent_logits, recurrent_nats

__all__ = [
    "accumulate_probes_",
    "apply_probe",
    "apply_probe_",
    "apply_probes",
    "probe",
    "recurrent_logits",
    "recurrent_nats",
    "swap_probe_",
]

_ops = torch.ops.zo_kernels
_INTEGERS = (int, torch.SymInt)  # the second while torch.compile traces


def _int64(seed: int) -> int:
    """The seed's 64 bits as two's complement, which is what an op can carry."""
    if isinstance(seed, np.integer):
        seed = int(seed)
    if not isinstance(seed, _INTEGERS):
        raise TypeError(f"a seed must be an integer, not {seed!r}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit 64 bits, not {seed}")
    return seed - 2**64 if seed >= 2**63 else seed


def _refuse_grad(x: Tensor, name: str = "x") -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"zo_kernels.ops are not differentiable, but {name} requires a gradient: use torch.no_grad()"
        )


def _refuse_offset(offset: int) -> None:
    """What does not fit the op's argument; the op checks the rest."""
    if not isinstance(offset, _INTEGERS):
        raise TypeError(f"offset must be an integer, not {offset!r}")
    if not -(2**63) <= offset < 2**63:
        raise ValueError(f"offset must be a non-negative multiple of 128 below 2^63, not {offset}")


def _refuse_distribution(distribution: str) -> None:
    """What does not fit the op's argument; the op checks the rest."""
    if not isinstance(distribution, str):
        check_distribution(distribution)


def probe(
    numel: int,
    seed: int,
    *,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    distribution: str = "rademacher",
) -> Tensor:
    """p(seed) itself, elements offset .. offset + numel: Tensor [numel]; of Rademacher probes +1 and -1.

    distribution, here and below: "rademacher", "normal", "uniform" (of variance 1) or "sparse-K": +1 or -1 with
    probability 1/K, else 0, K a power of two from 2 to 65536.
    """
    if not isinstance(numel, _INTEGERS):
        raise TypeError(f"numel must be an integer, not {numel!r}")
    if numel < 0:
        raise ValueError(f"numel must not be negative, but is {numel}")
    _refuse_offset(offset)
    device = torch.device(device)
    if distribution != "rademacher":
        _refuse_distribution(distribution)
        return _ops.probe_from(distribution, numel, _int64(seed), offset=offset, dtype=dtype, device=device)
    return _ops.probe(numel, _int64(seed), offset=offset, dtype=dtype, device=device)


def apply_probe_(x: Tensor, alpha: float, seed: int, *, offset: int = 0, distribution: str = "rademacher") -> Tensor:
    """x += alpha * p(seed), in one pass and without a temporary. Returns x."""
    _refuse_grad(x)
    _refuse_offset(offset)
    if distribution != "rademacher":
        _refuse_distribution(distribution)
        _ops.apply_probe_from_(distribution, x, alpha, _int64(seed), offset=offset)
    else:
        _ops.apply_probe_(x, alpha, _int64(seed), offset=offset)
    return x


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
    """cast(x + alpha * p(seed)), x unchanged: into `out` (shape and device of x), or a new tensor of `dtype` (x's)."""
    _refuse_grad(x)
    _refuse_offset(offset)
    if out is None:
        if distribution != "rademacher":
            _refuse_distribution(distribution)
            return _ops.apply_probe_from(distribution, x, alpha, _int64(seed), offset=offset, dtype=dtype or x.dtype)
        return _ops.apply_probe(x, alpha, _int64(seed), offset=offset, dtype=dtype or x.dtype)
    if dtype is not None and dtype != out.dtype:
        raise TypeError(f"dtype is {dtype}, but out has {out.dtype}: give one of them")
    _refuse_grad(out, "out")
    if distribution != "rademacher":
        _refuse_distribution(distribution)
        _ops.apply_probe_from_out(distribution, x, out, alpha, _int64(seed), offset=offset)
    else:
        _ops.apply_probe_out(x, out, alpha, _int64(seed), offset=offset)
    return out


def apply_probes(
    x: Tensor,
    alpha: float | Tensor,
    seeds: Tensor | Sequence[int] | npt.NDArray[np.int64],
    *,
    offset: int = 0,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """x + alpha * p and x - alpha * p for n probes at once: Tensor [n, 2, *x.shape], each element rounded once.

    Result [i, 0] is `apply_probe(x, alpha, seeds[i])` and [i, 1] is `apply_probe(x, -alpha, seeds[i])`, written into
    `out` (device of x, apart from it in memory), or a new tensor of `dtype` (x's).

    alpha (a float, or a float64 tensor of one element) and seeds [n] may lie on the CPU or beside x. On x's CUDA device
    the kernel reads them, so that a CUDA graph which captured the call can be replayed with others in their place;
    whether such an alpha is finite is then not checked.
    """
    _refuse_grad(x)
    _refuse_offset(offset)
    if not isinstance(seeds, Tensor):
        seeds = torch.tensor([_int64(seed) for seed in seeds], dtype=torch.int64)
    if not isinstance(alpha, Tensor):
        alpha = torch.tensor(alpha, dtype=torch.float64)
    if out is None:
        out = x.new_empty((seeds.numel(), 2, *x.shape), dtype=dtype or x.dtype)
    elif dtype is not None and dtype != out.dtype:
        raise TypeError(f"dtype is {dtype}, but out has {out.dtype}: give one of them")
    _refuse_grad(out, "out")
    _ops.apply_probes(x, out, alpha, seeds, offset=offset)
    return out


def swap_probe_(x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, *, offset: int = 0) -> Tensor:
    """x += alpha * p(seed), then x += next_alpha * p(next_seed), in one pass. Returns x.

    Leaves one probe and enters the next. Both sums are rounded, so the result is that of two calls of `apply_probe_`
    (for 16-bit dtypes the first sum stays in float32).
    """
    _refuse_grad(x)
    _refuse_offset(offset)
    _ops.swap_probe_(x, alpha, _int64(seed), next_alpha, _int64(next_seed), offset=offset)
    return x


def accumulate_probes_(
    x: Tensor,
    coeffs: Tensor | Sequence[float] | npt.NDArray[np.float64],
    seeds: Tensor | Sequence[int] | npt.NDArray[np.int64],
    *,
    offset: int = 0,
    decay: float = 1.0,
    grid: float = 0.0,
    undo_alpha: float = 0.0,
    undo_seed: int = 0,
    distribution: str = "rademacher",
) -> Tensor:
    """x += sum_i coeffs[i] * p(seeds[i]), one read and one write of x for all seeds. Returns x.

    coeffs [n] and seeds [n] are read on the host. The coefficients are quantised to integers q of a common power of two
    (`zo_kernels.ops.quantise`; the unit is about 2^-31 of their absolute sum), so the sum per element is exact and does
    not depend on the order of the rows. Normal and uniform probes are summed in float64 instead, in the order of the
    rows. The options are what an optimizer step does in the same pass; per element, each operation rounded:

        v = x;  v += undo_alpha * p(undo_seed);  v *= decay;  v += sum;  v = round(v / grid) * grid;  x = v

    grid is 0 (none) or a power of two.
    """
    _refuse_grad(x)
    _refuse_offset(offset)
    if isinstance(coeffs, np.ndarray):
        coeffs = torch.from_numpy(np.array(coeffs, np.float64, order="C"))  # a copy: torch knows no negative strides
    elif not isinstance(coeffs, Tensor):
        try:
            coeffs = torch.tensor(coeffs, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"coeffs must be numbers: {error}") from error
    if coeffs.is_complex():
        raise TypeError("coeffs must be real numbers, not complex ones")
    if not isinstance(seeds, Tensor):
        seeds = torch.tensor([_int64(seed) for seed in seeds], dtype=torch.int64)
    rows = coeffs.to(torch.float64), seeds
    update = {"decay": decay, "grid": grid, "undo_alpha": undo_alpha, "undo_seed": _int64(undo_seed)}
    if distribution != "rademacher":
        _refuse_distribution(distribution)
        _ops.accumulate_probes_from_(distribution, x, *rows, offset=offset, **update)
    else:
        _ops.accumulate_probes_(x, *rows, offset=offset, **update)
    return x
