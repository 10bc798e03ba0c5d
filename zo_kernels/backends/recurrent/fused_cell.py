"""The cells of a time step as one Triton kernel, in place of some twenty torch ops that each read and write all gates.

Not yet verified on a GPU: compared in Triton's interpreter, and compiled for sm_80 and sm_90. So it is checked against
torch's ops at its first use on a device, and torch computes the cells where it can't be compiled or is wrong.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..base import CELLS

_BLOCK = 512
"""Elements of a program of four warps, which leaves an LSTM 72 registers and thirteen loads in flight for each."""

_MOST_ELEMENTS = 2**31 - _BLOCK
"""Of one member's states, which the kernel numbers in 32 bits."""

_WRONG = 1e-5
"""Error of a state above which the kernel counts as wrong. Rounding explains a hundredth of it."""

_logger = logging.getLogger("zo_kernels")


class FusedCell(Protocol):
    """Computes the cells of all heads and members; see `cells`. The states and out_MBH are overwritten.

    All tensors are contiguous but for the strides of members, the first dimensions of rows, biases and outputs.
    """

    def __call__(
        self,
        cell: str,
        rows_MXG: Tensor,
        index_B: Tensor | None,
        r_MNBK: Tensor,
        bias_MGND: Tensor,
        states: Sequence[Tensor],
        out_MBH: Tensor,
    ) -> None: ...


def fused_cell(device: torch.device, dtype: torch.dtype) -> FusedCell | None:
    """Returns the kernel for states of that dtype on that device, or None if torch has to compute them.

    The first call for a device waits until the kernel is compiled and checked.
    """
    if device.type != "cuda" or dtype != torch.float32:
        return None
    return advance if _is_right(torch.cuda.current_device() if device.index is None else device.index) else None


def advance(
    cell: str,
    rows_MXG: Tensor,
    index_B: Tensor | None,
    r_MNBK: Tensor,
    bias_MGND: Tensor,
    states: Sequence[Tensor],
    out_MBH: Tensor,
) -> None:
    """See `FusedCell`. Raises ValueError if a member has 2^31 states or more."""
    from . import cell_kernels  # not above: it imports Triton, which may be missing and takes a moment

    members, heads, batch_size, dim = states[0].shape
    elements = batch_size * heads * dim
    if elements > _MOST_ELEMENTS:
        raise ValueError(f"a batch of {batch_size} with {heads * dim} units is too large: use a smaller micro-batch")
    tiles = -(-elements // _BLOCK)
    with torch.cuda.device_of(out_MBH):
        cell_kernels.advance[(members * tiles,)](
            rows_MXG,
            rows_MXG if index_B is None else index_B,
            r_MNBK,
            bias_MGND,
            states[0],
            states[-1],
            out_MBH,
            batch_size,
            rows_MXG.stride(0),
            bias_MGND.stride(0),
            out_MBH.stride(0),
            tiles,
            CELL=cell,
            HEADS=heads,
            DIM=dim,
            GATHERS=index_B is not None,
            BLOCK=_BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )


@functools.cache
def _is_right(index: int) -> bool:
    """Whether the kernel works on a device. Logs a warning if it should, but does not."""
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        errors = [deviation(cell, torch.device("cuda", index)) for cell in CELLS]
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of Triton, of the C compiler that it calls, or of the driver
        problem = f"can't be compiled: {(str(error).strip() or type(error).__name__).splitlines()[0]}"
    else:
        if all(error <= _WRONG for error in errors):  # not so of NaN
            return True
        problem = f"is wrong by {max(errors):.2g}"
    _logger.warning("the kernel of recurrent cells %s; torch computes them, more slowly", problem)
    return False


def deviation(cell: str, device: torch.device) -> float:
    """Returns the largest error of a state after one step of a small layer, against torch's ops in float64."""
    from .cells import cell_states

    shape, generator = CELLS[cell], torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator).to(device)

    members, batch, heads, dim, rows = 2, 5, 3, 7, 4
    table, index = draw(members, rows, shape.input_rows * heads * dim), torch.tensor([3, 0, 3, 1, 2], device=device)
    products, bias = draw(members, heads, batch, shape.recurrent_rows * dim), draw(members, shape.biases, heads, dim)
    states, out = [draw(members, heads, batch, dim) for _ in range(shape.states)], draw(members, batch, heads * dim)
    x = table[:, index].double().unflatten(2, (shape.input_rows, heads, dim)).permute(0, 3, 1, 2, 4)
    r = products.double().unflatten(3, (shape.recurrent_rows, dim))
    before = [state.double() for state in states]
    expected = cell_states(cell, x.unbind(3), r.unbind(3), bias.double()[:, :, :, None].unbind(1), before)
    advance(cell, table, index, products, bias, states, out)
    wanted = [*expected, expected[0].transpose(1, 2).flatten(2)]
    off = [float((got.double() - want).abs().max()) for got, want in zip([*states, out], wanted, strict=True)]
    return float(torch.tensor(off).max())  # NaN if one is
