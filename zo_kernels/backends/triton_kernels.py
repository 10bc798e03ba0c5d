"""The Triton kernels of `zo_kernels.backends.triton` for Rademacher probes: an op on a tensor, or on a list of them.

A program owns a tile of 32 Philox blocks, 4096 elements. Where a tile begins is a 64-bit number, added to the pointers
once.

Scalars come as the bits of a float64 in an int64: Triton passes a Python float as a float32. They, and whatever else
changes from call to call, are not specialised on: a kernel is compiled once for each combination of dtypes, and again
for a tensor that is not aligned to 16 bytes. The tensors of a list are looked at when the kernel runs.
"""

# No `from __future__ import annotations`: Triton 3.3 takes a tl.constexpr in quotes for an ordinary argument.

import triton
import triton.language as tl

from .triton_elements import BLOCKS, TILE, apply_tile, load, scalar, store, tile_signs, times_sign
from .triton_update import update_tile, weighted_sums


@triton.jit(do_not_specialize=["numel", "alpha", "seed", "next_alpha", "next_seed", "block"])
def apply(
    x: tl.tensor,
    out: tl.tensor,
    numel: tl.int64,
    alpha: tl.int64,
    seed: tl.int64,
    next_alpha: tl.int64,
    next_seed: tl.int64,
    block: tl.int64,
    READS: tl.constexpr,
    NUM_TERMS: tl.constexpr,
) -> None:
    """out = cast(x + alpha * p(seed) + next_alpha * p(next_seed)): x if READS, the last term if NUM_TERMS is 2."""
    tile = tl.program_id(0).to(tl.int64)
    x += tile * TILE
    out += tile * TILE
    block += tile * BLOCKS
    left = numel - tile * TILE
    alpha = scalar(alpha, x.dtype.element_ty)
    next_alpha = scalar(next_alpha, x.dtype.element_ty)
    if left >= TILE:
        apply_tile(x, out, None, alpha, seed, next_alpha, next_seed, block, READS, NUM_TERMS)
    else:
        apply_tile(x, out, left.to(tl.int32), alpha, seed, next_alpha, next_seed, block, READS, NUM_TERMS)


@triton.jit(do_not_specialize=["numel", "alpha", "seeds", "num_seeds", "block"])
def apply_both(
    x: tl.tensor,
    out: tl.tensor,
    numel: tl.int64,
    alpha: tl.tensor,
    seeds: tl.tensor,
    num_seeds: tl.int32,
    block: tl.int64,
    ALIGNED: tl.constexpr,
) -> None:
    """out[k, 0] = cast(x + alpha * p(seeds[k])), out[k, 1] = cast(x - alpha * p(seeds[k])).

    alpha (its bits) and seeds are memory, read when the kernel runs. ALIGNED: numel is a multiple of 16, so each
    out[k, s] is as aligned as out, and a mask does not keep accesses from being 16 bytes wide.
    """
    numel = numel.to(tl.int64)
    if ALIGNED:
        numel = numel // 16 * 16
    tile = tl.program_id(0).to(tl.int64)
    x += tile * TILE
    out += tile * TILE
    left = tl.minimum(numel - tile * TILE, TILE).to(tl.int32)
    i = tl.arange(0, TILE)
    step = scalar(tl.load(alpha), x.dtype.element_ty)
    v = load(x, i, left)
    for k in range(tl.program_id(1), num_seeds, tl.num_programs(1)):
        moved = times_sign(step, tile_signs(tl.load(seeds + k), block + tile * BLOCKS))
        plus = out + 2 * k * numel
        store(plus, i, v + moved, left)
        store(plus + numel, i, v - moved, left)


UPDATE = ["scale", "undo_alpha", "undo_seed", "decay", "grid", "per_grid", "rounding_seed"]


@triton.jit(do_not_specialize=["numel", "rows", "num_rows", "block", *UPDATE])
def accumulate(
    x: tl.tensor,
    numel: tl.int64,
    rows: tl.tensor,
    num_rows: tl.int32,
    scale: tl.int64,
    block: tl.int64,
    undo_alpha: tl.int64,
    undo_seed: tl.int64,
    decay: tl.int64,
    grid: tl.int64,
    per_grid: tl.int64,
    rounding_seed: tl.int64,
    AT_RANDOM: tl.constexpr,
) -> None:
    """x += sum_i q_i * p(seed_i) * scale, with the options of `base.Update`; rows int64 [num_rows, 2] of (seed, q)."""
    tile = tl.program_id(0).to(tl.int64)
    x += tile * TILE
    block += tile * BLOCKS
    left = numel - tile * TILE
    s0, s1, s2, s3, total = weighted_sums(rows, num_rows, block)
    if left >= TILE:
        update_tile(
            x,
            None,
            s0,
            s1,
            s2,
            s3,
            total,
            block,
            undo_seed,
            undo_alpha,
            decay,
            scale,
            grid,
            per_grid,
            rounding_seed,
            AT_RANDOM,
        )
    else:
        part = left.to(tl.int32)
        update_tile(
            x,
            part,
            s0,
            s1,
            s2,
            s3,
            total,
            block,
            undo_seed,
            undo_alpha,
            decay,
            scale,
            grid,
            per_grid,
            rounding_seed,
            AT_RANDOM,
        )


@triton.jit
def find(table: tl.tensor, count: tl.int32) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Of the tile of this program: the row of its piece in a `DeviceTable`, the tile's number within the piece, its
    block, and how many elements are left from where it begins.

    The row is the last whose tiles begin at this one or before, since an empty piece has none.
    """
    tile = tl.program_id(0).to(tl.int64)
    row = count * 0
    behind = count
    while behind - row > 1:
        middle = (row + behind) // 2
        begins = tl.load(table + 4 * middle + 3) <= tile
        row = tl.where(begins, middle, row)
        behind = tl.where(begins, behind, middle)
    tile -= tl.load(table + 4 * row + 3)
    block = tl.load(table + 4 * row + 2) + tile * BLOCKS
    return row, tile, block, tl.load(table + 4 * row + 1) - tile * TILE


@triton.jit(do_not_specialize=["count", "alpha", "seed", "next_alpha", "next_seed"])
def apply_list(
    table: tl.tensor,
    out_table: tl.tensor,
    count: tl.int32,
    alpha: tl.int64,
    seed: tl.int64,
    next_alpha: tl.int64,
    next_seed: tl.int64,
    X: tl.constexpr,
    OUT: tl.constexpr,
    NUM_TERMS: tl.constexpr,
) -> None:
    """As `apply` for each of the `count` pieces of two tables with the same sizes; elements are of dtypes X and OUT."""
    row, tile, block, left = find(table, count)
    x_at = tl.load(table + 4 * row)
    out_at = tl.load(out_table + 4 * row)
    x = x_at.to(tl.pointer_type(X)) + tile * TILE
    out = out_at.to(tl.pointer_type(OUT)) + tile * TILE
    alpha = scalar(alpha, X)
    next_alpha = scalar(next_alpha, X)
    if (left >= TILE) & ((x_at | out_at) % 16 == 0):
        x = tl.multiple_of(x, 16)
        out = tl.multiple_of(out, 16)
        apply_tile(x, out, None, alpha, seed, next_alpha, next_seed, block, True, NUM_TERMS)
    else:
        part = tl.minimum(left, TILE).to(tl.int32)
        apply_tile(x, out, part, alpha, seed, next_alpha, next_seed, block, True, NUM_TERMS)


@triton.jit(do_not_specialize=["count", "rows", "num_rows", *UPDATE])
def accumulate_list(
    table: tl.tensor,
    count: tl.int32,
    rows: tl.tensor,
    num_rows: tl.int32,
    scale: tl.int64,
    undo_alpha: tl.int64,
    undo_seed: tl.int64,
    decay: tl.int64,
    grid: tl.int64,
    per_grid: tl.int64,
    rounding_seed: tl.int64,
    AT_RANDOM: tl.constexpr,
    X: tl.constexpr,
) -> None:
    """As `accumulate` for each of the `count` pieces of a table."""
    row, tile, block, left = find(table, count)
    x_at = tl.load(table + 4 * row)
    x = x_at.to(tl.pointer_type(X)) + tile * TILE
    s0, s1, s2, s3, total = weighted_sums(rows, num_rows, block)
    if (left >= TILE) & (x_at % 16 == 0):
        x = tl.multiple_of(x, 16)
        update_tile(
            x,
            None,
            s0,
            s1,
            s2,
            s3,
            total,
            block,
            undo_seed,
            undo_alpha,
            decay,
            scale,
            grid,
            per_grid,
            rounding_seed,
            AT_RANDOM,
        )
    else:
        part = tl.minimum(left, TILE).to(tl.int32)
        update_tile(
            x,
            part,
            s0,
            s1,
            s2,
            s3,
            total,
            block,
            undo_seed,
            undo_alpha,
            decay,
            scale,
            grid,
            per_grid,
            rounding_seed,
            AT_RANDOM,
        )
