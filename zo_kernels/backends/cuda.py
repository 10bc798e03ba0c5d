"""The compiled CUDA kernels (csrc/cuda), on the tensor's device and torch's current stream.

Not yet verified on a GPU: the kernels were run on the CPU (tests/csrc/shim) and compiled for sm_80 and sm_90.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..distributions import parse
from ..errors import first_line
from . import cpu
from .base import DTYPES, Update
from .gpu import GpuBackend, queue_of, rows_beside, table_of, tables_of
from .pieces import Pieces

_CODE: dict[torch.dtype, int] = {dtype: code for code, dtype in enumerate(DTYPES)}
_MASK = 2**64 - 1


class CudaBackend(GpuBackend):
    """Compiled kernels for the ops; everything else as in `GpuBackend`."""

    name = "cuda"
    device_types = ("cuda",)

    def unavailable(self) -> str | None:
        if cpu._C is None:
            return cpu.missing_module()
        if not cpu._C.cuda_build():
            return "it was not built: zo_kernels was installed without a working nvcc of CUDA 11.8 or newer"
        if torch.version.cuda is None:
            return "this torch was built without CUDA; install a CUDA build of torch"
        if not torch.cuda.is_available():
            return "torch finds no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES"
        try:
            device = torch.cuda.current_device()
        except RuntimeError as error:  # in a process that was forked, say
            return f"torch can't use its CUDA device ({first_line(error)})"
        return cpu._C.cuda_problem(device) or None  # loads a kernel once; the next calls take microseconds

    def probe(self, out: Tensor, seed: int, offset: int, distribution: str) -> None:
        target = out.data_ptr(), _CODE[out.dtype], out.numel(), seed & _MASK, offset, *queue_of(out)
        if distribution == "rademacher":
            cpu._C.cuda_probe(*target)
        else:
            cpu._C.cuda_probe_from(*parse(distribution), *target)

    def apply_probe(self, x: Tensor, out: Tensor, alpha: float, seed: int, offset: int, distribution: str) -> None:
        places = x.data_ptr(), _CODE[x.dtype], out.data_ptr(), _CODE[out.dtype], x.numel()
        queue = queue_of(x)
        if distribution == "rademacher":
            cpu._C.cuda_apply_probe(*places, alpha, seed & _MASK, offset, *queue)
        else:
            kind = parse(distribution)
            cpu._C.cuda_apply_probe_from(*kind, *places, alpha, seed & _MASK, offset, *queue)

    def apply_probes(self, x: Tensor, out: Tensor, alpha: Tensor, seeds: Tensor, offset: int) -> None:
        alpha, seeds = alpha.to(x.device), seeds.to(x.device)
        cpu._C.cuda_apply_probes(
            x.data_ptr(),
            _CODE[x.dtype],
            out.data_ptr(),
            _CODE[out.dtype],
            x.numel(),
            alpha.data_ptr(),
            seeds.data_ptr(),
            len(seeds),
            offset,
            *queue_of(x),
        )

    def swap_probe(self, x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, offset: int) -> None:
        cpu._C.cuda_swap_probe(
            x.data_ptr(),
            _CODE[x.dtype],
            x.numel(),
            alpha,
            seed & _MASK,
            next_alpha,
            next_seed & _MASK,
            offset,
            *queue_of(x),
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
        rows = rows_beside(x, seeds, coeffs, distribution)
        table = x.data_ptr(), _CODE[x.dtype], x.numel(), rows.data_ptr(), len(rows)
        undo, rounding, queue = (update.undo_alpha, update.undo_seed & _MASK), cpu.rounding_key(update), queue_of(x)
        if distribution == "rademacher":
            cpu._C.cuda_accumulate_probes(*table, shift, offset, *undo, update.decay, update.grid, rounding, *queue)
        else:
            kind, scale = parse(distribution), 2.0**-shift
            cpu._C.cuda_accumulate_probes_from(
                *kind, *table, scale, offset, *undo, update.decay, update.grid, rounding, *queue
            )

    def apply_probe_list(self, x: Pieces, out: Pieces, alpha: float, seed: int, distribution: str) -> None:
        table, target = tables_of(x, out)
        places = table.rows.data_ptr(), _CODE[x.dtype], target.rows.data_ptr(), _CODE[out.dtype], len(table.rows)
        tiles, queue = table.num_tiles, queue_of(x)
        if distribution == "rademacher":
            cpu._C.cuda_apply_probe_list(*places, tiles, alpha, seed & _MASK, *queue)
        else:
            kind = parse(distribution)
            cpu._C.cuda_apply_probe_list_from(*kind, *places, tiles, alpha, seed & _MASK, *queue)

    def swap_probe_list(self, x: Pieces, alpha: float, seed: int, next_alpha: float, next_seed: int) -> None:
        table = table_of(x)
        cpu._C.cuda_swap_probe_list(
            table.rows.data_ptr(),
            _CODE[x.dtype],
            len(table.rows),
            table.num_tiles,
            alpha,
            seed & _MASK,
            next_alpha,
            next_seed & _MASK,
            *queue_of(x),
        )

    def accumulate_probes_list(
        self,
        x: Pieces,
        coeffs: npt.NDArray[np.int32] | npt.NDArray[np.float64],
        shift: int,
        seeds: npt.NDArray[np.int64],
        update: Update,
        distribution: str,
    ) -> None:
        table, rows = table_of(x), rows_beside(x, seeds, coeffs, distribution)
        pieces = table.rows.data_ptr(), _CODE[x.dtype], len(table.rows), table.num_tiles, rows.data_ptr(), len(rows)
        undo, rounding, queue = (update.undo_alpha, update.undo_seed & _MASK), cpu.rounding_key(update), queue_of(x)
        if distribution == "rademacher":
            cpu._C.cuda_accumulate_probes_list(*pieces, shift, *undo, update.decay, update.grid, rounding, *queue)
        else:
            kind, scale = parse(distribution), 2.0**-shift
            cpu._C.cuda_accumulate_probes_list_from(
                *kind, *pieces, scale, *undo, update.decay, update.grid, rounding, *queue
            )
