"""Triton kernels (triton_kernels.py, triton_drawn.py), on the tensor's device and torch's current stream.

They compute on CUDA tensors, and on CPU tensors by Triton's interpreter where TRITON_INTERPRET=1 was set before Python
started. Not yet verified on a GPU: results were compared in the interpreter, the machine code for sm_80 and sm_90 read.
"""

from __future__ import annotations

import importlib.util
import os
import struct
import sys
from collections.abc import Sequence
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..distributions import parse
from ..philox import BLOCK_SIGNS
from . import cpu
from .base import Update
from .gpu import TILE, GpuBackend, beside, rows_beside, table_of, tables_of
from .pieces import Pieces

# No fused multiply-adds: each operation is rounded. Overflowing integers are meant; TRITON_DEBUG=1 would trap them.
_OPTIONS = {"enable_fp_fusion": False, "sanitize_overflow": False}

# Four warps on a tile for each probe applied: with one, a thread has 32 elements, enough loads in flight, and 80
# registers for float32. It makes the words of a whole block, of which its warp uses a quarter. One warp in accumulate,
# where every thread keeps the sums of its block.
_WARPS_PER_TERM, _ACCUMULATE_WARPS = 4, 1

# A thread then has four Philox calls of a tile of drawn elements, and the float64 sums of what they make in registers.
_DRAWN_WARPS = 8

# apply_probes shares the seeds of a tile out among programs until there are this many, some for each multiprocessor.
_ENOUGH_PROGRAMS = 1024


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


_INTERPRETED = _interpreted()


def _kernels() -> ModuleType:
    """Imports the kernels at the first launch: it takes a moment, and Triton may be missing."""
    from . import triton_kernels

    return triton_kernels


def _drawn_kernels() -> ModuleType:
    """Likewise, those for probes of any distribution."""
    from . import triton_drawn

    return triton_drawn


def _interpreter_changed() -> bool:
    """Whether TRITON_INTERPRET was different when this module or Triton was imported.

    Interpreted and compiled functions would then meet, which fails.
    """
    if "triton.language" in sys.modules:
        compiled = isinstance(sys.modules["triton.language"].cdiv, sys.modules["triton.runtime.jit"].JITFunction)
        if compiled == _INTERPRETED:
            return True
    return _interpreted() != _INTERPRETED


def _bits(value: float) -> int:
    """Returns the bits of a float64 as an int64."""
    return struct.unpack("<q", struct.pack("<d", value))[0]


def _bits_of(update: Update) -> tuple[int, ...]:
    """Returns the arguments undo_alpha, undo_seed, decay, grid, per_grid, rounding_seed and AT_RANDOM of a kernel."""
    scalars = _bits(update.undo_alpha), update.undo_seed, _bits(update.decay), _bits(update.grid)
    per_grid = 1.0 / update.grid if update.grid else 0.0
    return *scalars, _bits(per_grid), update.rounding_seed or 0, update.rounding_seed is not None


def _kind(distribution: str) -> dict[str, int]:
    """Returns the arguments by which a kernel knows a distribution."""
    stream, sparsity = parse(distribution)
    return {"sparsity": sparsity, "STREAM": int(stream)}


def _num_tiles(x: Tensor) -> int:
    return -(-x.numel() // TILE)


def _element(x: Pieces) -> object:
    """Returns Triton's dtype for the elements of a list."""
    return getattr(_kernels().tl, str(x.dtype).removeprefix("torch."))


def _apply(x: Tensor, out: Tensor, terms: Sequence[tuple[float, int]], offset: int, reads: bool = True) -> None:
    """out = cast(x + alpha * p(seed) + ...) for one or two terms (alpha, seed). Leaves out x unless `reads`."""
    if x.numel() == 0:
        return
    (alpha, seed), (next_alpha, next_seed) = terms[0], terms[-1]
    with torch.cuda.device_of(x):
        _kernels().apply[(_num_tiles(x),)](
            x,
            out,
            x.numel(),
            _bits(alpha),
            seed,
            _bits(next_alpha),
            next_seed,
            offset // BLOCK_SIGNS,
            READS=reads,
            NUM_TERMS=len(terms),
            num_warps=_WARPS_PER_TERM * len(terms),
            **_OPTIONS,
        )


def _apply_list(x: Pieces, out: Pieces, terms: Sequence[tuple[float, int]]) -> None:
    """As `_apply` for each piece."""
    table, target = tables_of(x, out)
    if table.num_tiles == 0:
        return
    (alpha, seed), (next_alpha, next_seed) = terms[0], terms[-1]
    with torch.cuda.device_of(table.rows):
        _kernels().apply_list[(table.num_tiles,)](
            table.rows,
            target.rows,
            len(table.rows),
            _bits(alpha),
            seed,
            _bits(next_alpha),
            next_seed,
            X=_element(x),
            OUT=_element(out),
            NUM_TERMS=len(terms),
            num_warps=_WARPS_PER_TERM * len(terms),
            **_OPTIONS,
        )


def _apply_drawn(x: Tensor, out: Tensor, term: tuple[float, int], offset: int, distribution: str, reads: bool) -> None:
    """out = cast(x + alpha * p(seed)), for any distribution, or the probe alone unless `reads`."""
    if x.numel() == 0:
        return
    alpha, seed = term
    with torch.cuda.device_of(x):
        _drawn_kernels().apply_drawn[(_num_tiles(x),)](
            x,
            out,
            x.numel(),
            _bits(alpha),
            seed,
            offset // BLOCK_SIGNS,
            READS=reads,
            **_kind(distribution),
            num_warps=_DRAWN_WARPS,
            **_OPTIONS,
        )


class TritonBackend(GpuBackend):
    """Triton's kernels for the ops; everything else as in `GpuBackend`."""

    name = "triton"
    # The interpreter is slow: on request by name only. Ahead of it on CPU tensors comes `cpu`, or it is not offered.
    device_types = ("cuda", "cpu") if _INTERPRETED and cpu._C is not None else ("cuda",)

    def unavailable(self) -> str | None:
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed; run `pip install triton`"
        if _interpreter_changed():
            return "TRITON_INTERPRET was changed after zo_kernels or Triton was imported; set it before Python starts"
        if not _INTERPRETED and not torch.cuda.is_available():
            return "torch finds no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES"
        return None

    def probe(self, out: Tensor, seed: int, offset: int, distribution: str) -> None:
        if distribution != "rademacher":
            return _apply_drawn(out, out, (1.0, seed), offset, distribution, reads=False)
        _apply(out, out, [(1.0, seed)], offset, reads=False)

    def apply_probe(self, x: Tensor, out: Tensor, alpha: float, seed: int, offset: int, distribution: str) -> None:
        if distribution != "rademacher":
            return _apply_drawn(x, out, (alpha, seed), offset, distribution, reads=True)
        _apply(x, out, [(alpha, seed)], offset)

    def swap_probe(self, x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, offset: int) -> None:
        _apply(x, x, [(alpha, seed), (next_alpha, next_seed)], offset)

    def apply_probes(self, x: Tensor, out: Tensor, alpha: Tensor, seeds: Tensor, offset: int) -> None:
        if out.numel() == 0:
            return
        tiles = _num_tiles(x)
        shares = min(len(seeds), -(-_ENOUGH_PROGRAMS // tiles))
        with torch.cuda.device_of(x):
            _kernels().apply_both[(tiles, shares)](
                x,
                out,
                x.numel(),
                beside(x, alpha.view(torch.int64)),
                beside(x, seeds),
                len(seeds),
                offset // BLOCK_SIGNS,
                ALIGNED=x.numel() % 16 == 0,
                num_warps=_WARPS_PER_TERM,
                **_OPTIONS,
            )

    def accumulate_probes(
        self,
        x: Tensor,
        coeffs: npt.NDArray[np.int32] | npt.NDArray[np.float64],
        shift: int,
        seeds: npt.NDArray[np.int64],
        offset: int,
        update: Update,
        distribution: str,
    ) -> None:
        if x.numel() == 0:
            return
        rows = rows_beside(x, seeds, coeffs, distribution)
        grid, table = (_num_tiles(x),), (x, x.numel(), rows, len(rows))
        options = _bits(2.0**-shift), offset // BLOCK_SIGNS, *_bits_of(update)
        with torch.cuda.device_of(x):
            if distribution == "rademacher":
                _kernels().accumulate[grid](*table, *options, num_warps=_ACCUMULATE_WARPS, **_OPTIONS)
            else:
                kernel, kind = _drawn_kernels().accumulate_drawn, _kind(distribution)
                kernel[grid](*table, *options, **kind, num_warps=_DRAWN_WARPS, **_OPTIONS)

    def apply_probe_list(self, x: Pieces, out: Pieces, alpha: float, seed: int, distribution: str) -> None:
        if distribution == "rademacher":
            return _apply_list(x, out, [(alpha, seed)])
        table, target = tables_of(x, out)
        if table.num_tiles == 0:
            return
        with torch.cuda.device_of(table.rows):
            _drawn_kernels().apply_drawn_list[(table.num_tiles,)](
                table.rows,
                target.rows,
                len(table.rows),
                _bits(alpha),
                seed,
                X=_element(x),
                OUT=_element(out),
                **_kind(distribution),
                num_warps=_DRAWN_WARPS,
                **_OPTIONS,
            )

    def swap_probe_list(self, x: Pieces, alpha: float, seed: int, next_alpha: float, next_seed: int) -> None:
        _apply_list(x, x, [(alpha, seed), (next_alpha, next_seed)])

    def accumulate_probes_list(
        self,
        x: Pieces,
        coeffs: npt.NDArray[np.int32] | npt.NDArray[np.float64],
        shift: int,
        seeds: npt.NDArray[np.int64],
        update: Update,
        distribution: str,
    ) -> None:
        table = table_of(x)
        if table.num_tiles == 0:
            return
        rows = rows_beside(x, seeds, coeffs, distribution)
        grid, pieces = (table.num_tiles,), (table.rows, len(table.rows), rows, len(rows))
        options, element = (_bits(2.0**-shift), *_bits_of(update)), _element(x)
        with torch.cuda.device_of(rows):
            if distribution == "rademacher":
                kernel = _kernels().accumulate_list
                kernel[grid](*pieces, *options, X=element, num_warps=_ACCUMULATE_WARPS, **_OPTIONS)
            else:
                kernel, kind = _drawn_kernels().accumulate_drawn_list, _kind(distribution)
                kernel[grid](*pieces, *options, X=element, **kind, num_warps=_DRAWN_WARPS, **_OPTIONS)
