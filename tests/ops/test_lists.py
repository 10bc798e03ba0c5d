"""A list of tensors in one call: bit for bit what the op on each tensor gives."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zo_kernels as zo
from tests.cases import DTYPES, assert_same_bits
from zo_kernels import _C
from zo_kernels.backends.pieces import Pieces
from zo_kernels.ops.lists import accumulate_probes_list, apply_probe_list, swap_probe_list

HIGH = 2**39  # where the high half of the block index changes
sizes = st.lists(
    st.integers(0, 9000) | st.sampled_from([0, 1, 127, 128, 129, 2047, 2048, 4096]), min_size=1, max_size=9
)
offsets = st.sampled_from([0, 128, HIGH - 2048, HIGH - 128, 2**56])
backends = st.sampled_from(["cpu", "reference"])
distributions = st.sampled_from(["rademacher", "normal", "uniform", "sparse-4"])
dtypes = st.sampled_from(DTYPES)
few = settings(max_examples=40, deadline=None)


def made(sizes: list[int], offset: int, dtype: torch.dtype) -> Pieces:
    generator, tensors, places = torch.Generator().manual_seed(0), [], []
    for n in sizes:
        tensors.append(torch.randn(n, generator=generator).to(dtype))
        places.append(offset)
        offset += -(-n // 128) * 128
    return Pieces(tensors, places)


def like(x: Pieces, dtype: torch.dtype | None = None) -> Pieces:
    return Pieces([t.to(dtype or t.dtype, copy=True) for t in x.tensors], x.offsets)


def assert_same(actual: Pieces, expected: list[Tensor]) -> None:
    for a, b in zip(actual.tensors, expected, strict=True):
        assert_same_bits(a, b, f"{len(a)} elements")


@few
@given(sizes, offsets, backends, distributions, dtypes, dtypes)
def test_apply(
    sizes: list[int], offset: int, backend: str, distribution: str, dtype: torch.dtype, out_dtype: torch.dtype
) -> None:
    x = made(sizes, offset, dtype)
    out = like(x, out_dtype)
    with zo.backend(backend):
        expected = [
            zo.ops.apply_probe(t, 0.3, 7, offset=o, dtype=out_dtype, distribution=distribution)
            for t, o in zip(x.tensors, x.offsets, strict=True)
        ]
        apply_probe_list(x, out, 0.3, 7, distribution)
        assert_same(out, expected)
        in_place = like(x)
        apply_probe_list(in_place, in_place, 0.3, 7, distribution)
        again = like(x)
        for t, o in zip(again.tensors, again.offsets, strict=True):
            zo.ops.apply_probe_(t, 0.3, 7, offset=o, distribution=distribution)
        assert_same(in_place, list(again.tensors))


@few
@given(sizes, offsets, backends, dtypes)
def test_swap(sizes: list[int], offset: int, backend: str, dtype: torch.dtype) -> None:
    x = made(sizes, offset, dtype)
    each = like(x)
    with zo.backend(backend):
        swap_probe_list(x, -0.3, 7, 0.25, 2**63 - 1)
        for t, o in zip(each.tensors, each.offsets, strict=True):
            zo.ops.swap_probe_(t, -0.3, 7, 0.25, 2**63 - 1, offset=o)
    assert_same(x, list(each.tensors))


@few
@given(sizes, offsets, backends, distributions, dtypes, st.integers(0, 20), st.sampled_from([0.0, 2.0**-10]))
def test_accumulate(
    sizes: list[int], offset: int, backend: str, distribution: str, dtype: torch.dtype, seeds: int, grid: float
) -> None:
    x = made(sizes, offset, dtype)
    each = like(x)
    rows = torch.arange(seeds) * 12345, torch.linspace(-0.1, 0.2, seeds, dtype=torch.float64)
    options = {"decay": 0.75, "grid": grid, "undo_alpha": -0.5, "undo_seed": 99}
    with zo.backend(backend):
        accumulate_probes_list(x, rows[1], rows[0], distribution, **options)
        for t, o in zip(each.tensors, each.offsets, strict=True):
            zo.ops.accumulate_probes_(t, rows[1], rows[0], offset=o, distribution=distribution, **options)
    assert_same(x, list(each.tensors))


def test_three_hundred_tensors_on_any_threads_and_instruction_set() -> None:
    torch.manual_seed(0)
    x = made([*torch.randint(1, 5000, (300,)).tolist()], HIGH - 200 * 2560, torch.float32)
    rows = torch.arange(40), torch.linspace(-0.1, 0.2, 40, dtype=torch.float64)
    expected = like(x)
    for t, o in zip(expected.tensors, expected.offsets, strict=True):
        zo.ops.apply_probe_(t, 0.5, 3, offset=o)
        zo.ops.accumulate_probes_(t, rows[1], rows[0], offset=o)
    threads = torch.get_num_threads()
    try:
        for isa in _C.supported_isas():
            for count in (1, 2, 3):
                _C.set_isa(isa)
                torch.set_num_threads(count)
                moved = like(x)
                apply_probe_list(moved, moved, 0.5, 3, "rademacher")
                accumulate_probes_list(moved, rows[1], rows[0], "rademacher")
                assert_same(moved, list(expected.tensors))
    finally:
        _C.set_isa("")
        torch.set_num_threads(threads)


def table(*rows: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("3q", *row) for row in rows)


@pytest.mark.parametrize(
    ("x", "out", "message"),
    [
        (b"12345", b"12345", "this is not a table of pieces"),
        (table((0, 5, 0)), table((0, 5, 0)), "null address"),
        (table((4096, 5, 64)), table((4096, 5, 64)), "not a multiple of 128"),
        (table((4096, -1, 0)), table((4096, -1, 0)), "numel is negative"),
        (table((4096, 5, 0)), table((4096, 6, 0)), "the pieces of x and out differ in size or offset"),
        (table((4096, 5, 0)), table((4096, 5, 128)), "the pieces of x and out differ in size or offset"),
        (table((4096, 5, 0)), b"", "the pieces of x and out differ in size or offset"),
    ],
)
def test_bad_tables_are_refused(x: bytes, out: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _C.apply_probe_list(x, 0, out, 0, 0.5, 1)


def test_bad_scalars_are_refused_before_anything_is_written() -> None:
    x = made([100, 3], 0, torch.float32)
    before = like(x)
    with pytest.raises(ValueError, match="alpha is not finite"):
        apply_probe_list(x, x, float("nan"), 1, "rademacher")
    with pytest.raises(ValueError, match="next_alpha is too large for float32"):
        swap_probe_list(x, 0.5, 1, 1e300, 2)
    with pytest.raises(ValueError, match="grid must be 0 or a power of two"):
        accumulate_probes_list(
            x, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64), "rademacher", grid=0.3
        )
    assert_same(x, list(before.tensors))


def test_the_table_holds_addresses_sizes_and_offsets() -> None:
    x = made([100, 0, 3], 256, torch.float64)
    rows = np.frombuffer(x.table, np.int64).reshape(3, 3)
    assert rows[:, 0].tolist() == [t.data_ptr() for t in x.tensors]
    assert rows[:, 1:].tolist() == [[100, 256], [0, 384], [3, 384]]
