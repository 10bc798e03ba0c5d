"""Checks of the ops' arguments, so that no backend has to make them.

The first part is for the functions that users call: it refuses what torch could not pass on to an op, and converts
seeds. The second is for the ops themselves. Each check raises TypeError for a wrong type or dtype and ValueError for
anything else that is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..backends.base import DTYPES
from ..distributions import check_distribution
from ..philox import BLOCK_SIGNS

INTEGERS = (int, torch.SymInt)
"""The types of an integer argument; it has the second while torch.compile traces."""

IGNORE_INDEX = -100
"""Target of a position that the loss leaves out: torch's own default `ignore_index`."""

_LARGEST = {dtype: torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).max for dtype in DTYPES}


def check_no_grad(x: Tensor, name: str = "x") -> None:
    """Raises TypeError unless x is a tensor, and RuntimeError if autograd would have to differentiate the op."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, not {type(x).__name__}")
    if x.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"zo_kernels.ops are not differentiable, but {name} requires a gradient: use torch.no_grad()"
        )


def check_writable(x: Tensor, name: str = "x") -> None:
    """As `check_no_grad`, for a tensor that the op changes. Torch refuses such changes too."""
    check_no_grad(x, name)
    if torch.compiler.is_compiling():  # which knows no is_inference
        return
    if x.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(f"{name} is an inference tensor, which must not change outside inference mode: clone it")


def check_call(offset: int, distribution: str = "rademacher") -> None:
    """Refuses what does not fit the arguments of an op; `check_probe` refuses the rest."""
    if not isinstance(offset, INTEGERS):
        raise TypeError(f"offset must be an integer, not {offset!r}")
    if not -(2**63) <= offset < 2**63:
        raise ValueError(f"offset must be a non-negative multiple of {BLOCK_SIGNS} below 2^63, not {offset}")
    if not isinstance(distribution, str):
        check_distribution(distribution)


def seed_to_int64(seed: int) -> int:
    """The seed's 64 bits as two's complement, which is what an op can carry."""
    if isinstance(seed, np.integer):
        seed = int(seed)
    if not isinstance(seed, INTEGERS):
        raise TypeError(f"a seed must be an integer, not {seed!r}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit 64 bits, not {seed}")
    return seed - 2**64 if seed >= 2**63 else seed


def seeds_to_tensor(seeds: Tensor | Sequence[int] | npt.NDArray[np.int64]) -> Tensor:
    """Seeds as an int64 tensor; a tensor is returned as it is."""
    if isinstance(seeds, Tensor):
        return seeds
    return torch.tensor([seed_to_int64(seed) for seed in seeds], dtype=torch.int64)


def check_dtype(dtype: torch.dtype, name: str = "dtype") -> None:
    """Checks that it is an element type of the ops."""
    if dtype not in DTYPES:
        raise TypeError(f"{name} must be one of {', '.join(str(d) for d in DTYPES)}, not {dtype}")


def check_tensor(x: Tensor, name: str = "x") -> None:
    """Checks that x has an element type of the ops and is contiguous."""
    if x.dtype not in DTYPES:
        check_dtype(x.dtype, f"{name}'s dtype")
    if not x.is_contiguous():
        raise ValueError(f"{name} must be contiguous; pass {name}.contiguous() or a view of a contiguous tensor")


def check_offset(offset: int, numel: int) -> None:
    """Checks that elements offset .. offset + numel lie in the flat parameter space and begin at a block."""
    if offset < 0 or offset % BLOCK_SIGNS:
        raise ValueError(f"offset must be a non-negative multiple of {BLOCK_SIGNS}, not {offset}")
    if offset + numel > 2**63 - 1:
        raise ValueError(f"offset + numel must stay below 2^63, but offset is {offset} and numel {numel}")


def check_probe(numel: int, offset: int, distribution: str) -> None:
    """Checks that elements offset .. offset + numel of a probe of this distribution exist."""
    if distribution != "rademacher":
        check_distribution(distribution)
    check_offset(offset, numel)


def check_scalar(value: float, name: str, dtype: torch.dtype) -> None:
    """Checks that a scalar is finite in the dtype that kernels compute in for tensors of `dtype`."""
    if not abs(value) <= _LARGEST[dtype]:
        kind = "too large for float32" if math.isfinite(value) else "not finite"
        raise ValueError(f"{name} is {kind}: {value}")


def check_seeds(seeds: Tensor) -> None:
    """Checks that the seeds of a population are an int64 CPU tensor of one dimension."""
    if seeds.dtype != torch.int64 or seeds.dim() != 1 or seeds.device.type != "cpu":
        raise TypeError(f"seeds must be an int64 CPU tensor of one dimension, not {seeds.dtype} {list(seeds.shape)}")


def check_out(x: Tensor, out: Tensor) -> None:
    """Checks that `out`, of any dtype, has the shape and device of x."""
    check_tensor(out, "out")
    if out.shape != x.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, but x has {tuple(x.shape)}")
    if out.device != x.device:
        raise ValueError(f"out is on {out.device}, but x is on {x.device}")


def _overlap(x: Tensor, out: Tensor) -> bool:
    a, b = x.data_ptr(), out.data_ptr()
    return a < b + out.numel() * out.element_size() and b < a + x.numel() * x.element_size()


def check_overlap(x: Tensor, out: Tensor) -> None:
    """Checks that `out` is x itself or separate memory, and does not share a part of x."""
    if not (x.data_ptr() == out.data_ptr() and x.dtype == out.dtype) and _overlap(x, out):
        raise ValueError("out overlaps x in memory: pass x itself or separate memory")


def check_apart(x: Tensor, out: Tensor) -> None:
    """Checks that `out` is separate memory."""
    if _overlap(x, out):
        raise ValueError("out overlaps x in memory: pass separate memory")


def check_members(x: Tensor, out: Tensor, alpha: Tensor, seeds: Tensor) -> None:
    """Checks the arguments of apply_probes: alpha is one float64, seeds are int64 [n], out is [n, 2, *x.shape]."""
    check_tensor(out, "out")
    if alpha.dtype != torch.float64 or alpha.numel() != 1:
        raise TypeError(f"alpha must be one float64, not {alpha.dtype} {list(alpha.shape)}")
    if seeds.dtype != torch.int64 or seeds.dim() != 1:
        raise TypeError(f"seeds must be an int64 tensor of one dimension, not {seeds.dtype} {list(seeds.shape)}")
    if out.shape != (len(seeds), 2, *x.shape):
        raise ValueError(f"out must have shape {[len(seeds), 2, *x.shape]}, not {list(out.shape)}")
    if out.device != x.device:
        raise ValueError(f"out is on {out.device}, but x is on {x.device}")
    for name, tensor in (("alpha", alpha), ("seeds", seeds)):
        if tensor.device != x.device and (tensor.device.type != "cpu" or x.is_meta):
            raise ValueError(f"{name} is on {tensor.device}, but must be on the CPU or on {x.device} as x is")


def check_rows(x: Tensor, coeffs: Tensor, seeds: Tensor) -> None:
    """Checks that coeffs (float64 [n]) and seeds (int64 [n]) can be read on the host."""
    if coeffs.dtype != torch.float64 or seeds.dtype != torch.int64:
        raise TypeError(f"coeffs must be float64 and seeds int64, not {coeffs.dtype} and {seeds.dtype}")
    readable = ("cpu", "meta") if x.is_meta else ("cpu",)
    if coeffs.device.type not in readable or seeds.device.type not in readable:
        raise ValueError("coeffs and seeds must be CPU tensors: they are read on the host")
    if coeffs.dim() != 1 or seeds.dim() != 1:
        raise ValueError(f"coeffs and seeds must have one dimension, not {coeffs.dim()} and {seeds.dim()}")
    if coeffs.shape != seeds.shape:
        raise ValueError(f"coeffs and seeds must have the same length, not {coeffs.shape[0]} and {seeds.shape[0]}")


def check_update(decay: float, grid: float, undo_alpha: float, rounding_seed: int | None, dtype: torch.dtype) -> None:
    """Checks that the options of accumulate_probes_ fit tensors of `dtype`."""
    check_scalar(decay, "decay", dtype)
    check_scalar(undo_alpha, "undo_alpha", dtype)
    if grid != 0.0 and not (2.0**-126 <= grid <= 2.0**126 and math.frexp(grid)[0] == 0.5):
        raise ValueError(f"grid must be 0 or a power of two between 2^-126 and 2^126, not {grid}")
    if rounding_seed is not None and dtype.itemsize > 2:
        raise TypeError(f"rounding_seed is for bfloat16 and float16 tensors, not for {dtype}: leave it out")


def check_tokens_form(tokens: Tensor) -> None:
    """Checks that tokens are int64 or int32 [B, T], not empty. Their values are not read."""
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"tokens must be int64 or int32, not {tokens.dtype}")
    if tokens.dim() != 2 or tokens.numel() == 0:
        raise ValueError(f"tokens must be a non-empty [B, T] tensor, not of shape {list(tokens.shape)}")


def check_tokens(tokens: Tensor, vocab_size: int) -> None:
    """As `check_tokens_form`, and that all values lie in [0, vocab_size). Waits for the device."""
    check_tokens_form(tokens)
    low, high = map(int, tokens.aminmax())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"tokens must lie in [0, {vocab_size}), but range from {low} to {high}")


def check_targets_form(tokens: Tensor, targets: Tensor) -> None:
    """Checks that targets are int64 of the tokens' shape. Their values are not read."""
    if targets.shape != tokens.shape or targets.dtype != torch.int64:
        raise ValueError(
            f"targets must be int64 of the tokens' shape {list(tokens.shape)}, "
            f"not {targets.dtype} of shape {list(targets.shape)}"
        )


def check_targets(tokens: Tensor, targets: Tensor, vocab_size: int) -> None:
    """As `check_targets_form`, and that all values lie in [0, vocab_size) or are -100. Waits for the device."""
    check_targets_form(tokens, targets)
    low, high = map(int, targets.aminmax())
    if high >= vocab_size or (low < 0 and bool(((targets < 0) & (targets != IGNORE_INDEX)).any())):
        raise ValueError(f"targets must lie in [0, {vocab_size}) or be {IGNORE_INDEX}, but range from {low} to {high}")
