"""A list of tensors that a backend works on together."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class DeviceTable(NamedTuple):
    """What GPU kernels read of a list: `gpu.table_of` makes it."""

    rows: Tensor
    """int64 [pieces, 4] on the device: address, number of elements, offset / 128, number of the first tile."""
    num_tiles: int
    """Of all pieces."""


class Pieces:
    """Contiguous tensors of one dtype and device, and where each lies in the flat parameter space.

    tensors: at least one, of a dtype in `DTYPES`. offsets: element i of tensors[k] is element offsets[k] + i of the
        flat parameter space; multiples of 128.

    The tensors must stay in their memory for as long as the list is used. A CUDA graph that uses the list needs it for
    as long as it is replayed.
    """

    __slots__ = ("device", "device_table", "dtype", "offsets", "table", "tensors")

    tensors: tuple[Tensor, ...]
    offsets: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    table: bytes
    """Address, number of elements and offset of each tensor as 64-bit integers: what the compiled kernels read."""
    device_table: DeviceTable | None
    """The same for GPU kernels, from their first use of this list on."""

    def __init__(self, tensors: Sequence[Tensor], offsets: Sequence[int]) -> None:
        self.tensors, self.offsets = tuple(tensors), tuple(offsets)
        self.dtype, self.device = tensors[0].dtype, tensors[0].device
        rows = [n for x, offset in zip(tensors, offsets, strict=True) for n in (x.data_ptr(), x.numel(), offset)]
        self.table = struct.pack(f"{len(rows)}q", *rows)
        self.device_table = None
