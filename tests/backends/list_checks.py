"""What the ops on lists must do, bit for bit: for each tensor what the op on that tensor does.

tests/ops/test_lists.py compares any list on the CPU. The checks over fixed lists are for GPUs too: test_cuda.py runs
them over the CPU's kernels, test_triton_parity.py in Triton's interpreter, tests/gpu/test_ops.py on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

import zo_kernels as zo
from tests.backends.op_checks import Place
from tests.cases import DTYPES, EDGE, Guarded, assert_same_bits, make_values
from zo_kernels.backends.pieces import Pieces
from zo_kernels.ops.lists import accumulate_probes_list, apply_probe_list, swap_probe_list

# Around a tile, with nothing at both ends and between. An interpreted tile takes tens of milliseconds.
SIZES, OFFSET = (0, 0, 4096, 1, 0, 4097, 4200, 127, 0), EDGE - 4096 - 128


class Listed(NamedTuple):
    """A list, what lies around its tensors, and the same tensors on the CPU."""

    pieces: Pieces
    guarded: list[Guarded]
    values: list[Tensor]

    def assert_are(self, expected: Sequence[Tensor], what: object) -> None:
        for k, (guarded, wanted) in enumerate(zip(self.guarded, expected, strict=True)):
            assert_same_bits(guarded.tensor.cpu(), wanted, f"{what}, tensor {k}")
            guarded.assert_surroundings_untouched(f"{what}, tensor {k}")


def listed(place: Place, sizes: Sequence[int], offset: int, dtype: torch.dtype) -> Listed:
    """One after the other from `offset` on; their addresses are aligned to 16 bytes in turn and not."""
    values, offsets = [make_values(n, dtype) for n in sizes], []
    for n in sizes:
        offsets.append(offset)
        offset += -(-n // 128) * 128
    guarded = [place.guarded(x, (0, 3, 0, 1, 2)[k % 5]) for k, x in enumerate(values)]
    return Listed(Pieces([g.tensor for g in guarded], offsets), guarded, values)


def compare_apply(
    place: Place,
    sizes: Sequence[int],
    offset: int,
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    distribution: str,
) -> None:
    """To tensors of out_dtype, then in place, twice: a list that is used again finds what the first use left."""
    x, out = listed(place, sizes, offset, dtype), listed(place, sizes, offset, out_dtype)
    options = {"distribution": distribution}
    with zo.backend(place.right):
        pairs = list(zip(x.values, x.pieces.offsets, strict=True))
        expected = [zo.ops.apply_probe(v, 0.3, 7, offset=o, dtype=out_dtype, **options) for v, o in pairs]
        once = [zo.ops.apply_probe(v, 0.3, 7, offset=o, **options) for v, o in pairs]
        again = zip(once, x.pieces.offsets, strict=True)
        twice = [zo.ops.apply_probe(v, -1e-41, -8, offset=o, **options) for v, o in again]
    with zo.backend(place.backend):
        apply_probe_list(x.pieces, out.pieces, 0.3, 7, distribution)
        out.assert_are(expected, f"apply from {dtype} to {out_dtype}")
        x.assert_are(x.values, "the source")
        apply_probe_list(x.pieces, x.pieces, 0.3, 7, distribution)
        apply_probe_list(x.pieces, x.pieces, -1e-41, -8, distribution)
        x.assert_are(twice, f"apply to {dtype} in place")


def compare_swap(place: Place, sizes: Sequence[int], offset: int, dtype: torch.dtype) -> None:
    x = listed(place, sizes, offset, dtype)
    with zo.backend(place.right):
        for v, o in zip(x.values, x.pieces.offsets, strict=True):
            zo.ops.swap_probe_(v, -0.3, 7, 0.25, 2**63 - 1, offset=o)
    with zo.backend(place.backend):
        swap_probe_list(x.pieces, -0.3, 7, 0.25, 2**63 - 1)
    x.assert_are(x.values, f"swap {dtype}")


def compare_accumulate(
    place: Place,
    sizes: Sequence[int],
    offset: int,
    dtype: torch.dtype,
    seeds: int,
    grid: float,
    distribution: str,
) -> None:
    x = listed(place, sizes, offset, dtype)
    rows = torch.linspace(-0.1, 0.2, seeds, dtype=torch.float64), torch.arange(seeds) * 12345 - 7
    options: dict[str, Any] = (
        {"decay": 0.75, "grid": grid, "undo_alpha": -0.5, "undo_seed": 99} if seeds % 2 == 0 else {"grid": grid}
    )
    options["rounding_seed"] = -99 if dtype.itemsize == 2 else None
    with zo.backend(place.right):
        for v, o in zip(x.values, x.pieces.offsets, strict=True):
            zo.ops.accumulate_probes_(v, *rows, offset=o, distribution=distribution, **options)
    with zo.backend(place.backend):
        accumulate_probes_list(x.pieces, *rows, distribution, **options)
    x.assert_are(x.values, f"accumulate {seeds} seeds to {dtype}")


def check_apply(place: Place) -> None:
    for k, dtype in enumerate(DTYPES):
        for out_dtype in DTYPES if place.thorough else (dtype, DTYPES[k - 1]):
            compare_apply(place, SIZES, OFFSET, dtype, out_dtype, "rademacher")


def check_swap(place: Place) -> None:
    for dtype in DTYPES:
        compare_swap(place, SIZES, OFFSET, dtype)


def check_accumulate(place: Place) -> None:
    rows = (0, 2.0**-10), (1, 0.0), (20, 2.0**-10), (0, 0.0)
    for k, dtype in enumerate(DTYPES):
        for seeds, grid in rows if place.thorough else rows[k : k + 1]:
            compare_accumulate(place, SIZES, OFFSET, dtype, seeds, grid, "rademacher")


def check_one_tensor_and_none(place: Place) -> None:
    for sizes in ([5000], [1], [0], [0, 0, 0]):
        for offset in (0, 2**56):
            compare_apply(place, sizes, offset, torch.float32, torch.bfloat16, "rademacher")
            compare_swap(place, sizes, offset, torch.float64)
            compare_accumulate(place, sizes, offset, torch.float16, 3, 2.0**-10, "rademacher")


def check_three_hundred_tensors(place: Place) -> None:
    """In the interpreter, most of them empty."""
    sizes = [k * 1237 % 301 * (20 if k % 100 == 37 else 1) for k in range(300)]
    if not place.thorough:
        sizes = [n if k % 20 == 17 else 0 for k, n in enumerate(sizes)]
    compare_apply(place, sizes, EDGE - 128 * 200, torch.float32, torch.float16, "rademacher")
    compare_accumulate(place, sizes, EDGE - 128 * 200, torch.float32, 4, 2.0**-10, "rademacher")


def check_other_distributions(place: Place) -> None:
    for k, distribution in enumerate(("normal", "uniform", "sparse-4", "sparse-65536")):
        places = (SIZES, OFFSET), ([300, 0, 5], 128)
        for sizes, offset in places if place.thorough else places[k % 2 :][:1]:
            compare_apply(place, sizes, offset, DTYPES[k], DTYPES[k - 1], distribution)
            compare_accumulate(place, sizes, offset, DTYPES[k - 1], 3 if k % 2 else 2, 0.0, distribution)


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}
