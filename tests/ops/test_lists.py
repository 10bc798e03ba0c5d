"""A list of tensors in one call: bit for bit what the op on each tensor gives."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.list_checks import CHECKS, compare_accumulate, compare_apply, compare_swap, listed
from tests.backends.op_checks import Place
from tests.cases import DTYPES, EDGE
from zo_kernels import _C
from zo_kernels.ops.lists import accumulate_probes_list, apply_probe_list, swap_probe_list

CPU = Place("cpu", "cpu", thorough=True)

sizes = st.lists(
    st.integers(0, 9000) | st.sampled_from([0, 1, 127, 128, 129, 2047, 2048, 4096]), min_size=1, max_size=9
)
offsets = st.sampled_from([0, 128, EDGE - 2048, EDGE - 128, 2**56])
places = st.sampled_from(["cpu", "reference"]).map(lambda backend: Place(backend, "cpu", right=backend))
distributions = st.sampled_from(["rademacher", "normal", "uniform", "sparse-4"])
dtypes = st.sampled_from(DTYPES)
few = settings(max_examples=40, deadline=None)

test_apply = few(given(places, sizes, offsets, dtypes, dtypes, distributions)(compare_apply))
test_swap = few(given(places, sizes, offsets, dtypes)(compare_swap))
grids = st.sampled_from([0.0, 2.0**-10])
test_accumulate = few(
    given(places, sizes, offsets, dtypes, st.integers(0, 20), grids, distributions)(compare_accumulate)
)


@pytest.mark.parametrize("name", CHECKS)
def test_fixed_lists(name: str) -> None:
    CHECKS[name](CPU)


def test_three_hundred_tensors_on_any_threads_and_instruction_set() -> None:
    threads = torch.get_num_threads()
    try:
        for isa in _C.supported_isas():
            for count in (1, 2, 3):
                _C.set_isa(isa)
                torch.set_num_threads(count)
                CHECKS["three_hundred_tensors"](Place("cpu", "cpu", right="cpu", thorough=True))
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
    x = listed(CPU, [100, 3], 0, torch.float32)
    one = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="alpha is not finite"):
        apply_probe_list(x.pieces, x.pieces, float("nan"), 1, "rademacher")
    with pytest.raises(ValueError, match="next_alpha is too large for float32"):
        swap_probe_list(x.pieces, 0.5, 1, 1e300, 2)
    with pytest.raises(ValueError, match="grid must be 0 or a power of two"):
        accumulate_probes_list(x.pieces, *one, "rademacher", grid=0.3)
    x.assert_are(x.values, "refused")


def test_the_table_holds_addresses_sizes_and_offsets() -> None:
    x = listed(CPU, [100, 0, 3], 256, torch.float64).pieces
    rows = np.frombuffer(x.table, np.int64).reshape(3, 3)
    assert rows[:, 0].tolist() == [t.data_ptr() for t in x.tensors]
    assert rows[:, 1:].tolist() == [[100, 256], [0, 384], [3, 384]]
