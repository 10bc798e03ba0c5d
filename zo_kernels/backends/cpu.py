"""The compiled CPU kernels (csrc/cpu), chosen at run time for the processor's instruction set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .base import DTYPES, Backend, Update

try:
    from zo_kernels import _C
except ImportError as error:  # a checkout that was not built: unavailable() says so to whoever asks for this backend
    _C = None  # type: ignore[assignment]
    _import_error = str(error)

_CODE: dict[torch.dtype, int] = {dtype: code for code, dtype in enumerate(DTYPES)}
_MASK = 2**64 - 1


class CpuBackend(Backend):
    name = "cpu"
    device_types = ("cpu",)

    def unavailable(self) -> str | None:
        if _C is None:
            return f"its compiled module is missing ({_import_error}); install the package with `pip install .`"
        _C.active_isa()  # raises if ZO_KERNELS_ISA can't be had
        return None

    def probe(self, out: Tensor, seed: int, offset: int) -> None:
        _C.probe(out.data_ptr(), _CODE[out.dtype], out.numel(), seed & _MASK, offset)

    def apply_probe(self, x: Tensor, out: Tensor, alpha: float, seed: int, offset: int) -> None:
        _C.apply_probe(
            x.data_ptr(), _CODE[x.dtype], out.data_ptr(), _CODE[out.dtype], x.numel(), alpha, seed & _MASK, offset
        )

    def swap_probe(self, x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, offset: int) -> None:
        _C.swap_probe(
            x.data_ptr(), _CODE[x.dtype], x.numel(), alpha, seed & _MASK, next_alpha, next_seed & _MASK, offset
        )

    def accumulate_probes(
        self,
        x: Tensor,
        quantised: npt.NDArray[np.int32],
        shift: int,
        seeds: npt.NDArray[np.int64],
        offset: int,
        update: Update,
    ) -> None:
        _C.accumulate_probes(
            x.data_ptr(),
            _CODE[x.dtype],
            x.numel(),
            quantised.ctypes.data,
            seeds.ctypes.data,
            len(seeds),
            shift,
            offset,
            update.undo_alpha,
            update.undo_seed & _MASK,
            update.decay,
            update.grid,
        )
