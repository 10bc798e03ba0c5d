"""The Triton kernels for probes of any distribution, as those of triton_kernels.py for Rademacher probes.

A program owns a tile. It draws all elements first (triton_draw.py), then reads x, and writes.
"""

# No `from __future__ import annotations`: Triton 3.3 takes a tl.constexpr in quotes for an ordinary argument.

import triton
import triton.language as tl

from .triton_draw import draw
from .triton_elements import BLOCKS, SIGN_32, TILE, load, scalar, store
from .triton_kernels import UPDATE, find
from .triton_update import update_word, word_indices


@triton.jit
def _move_word(
    x: tl.tensor,
    out: tl.tensor,
    left: tl.tensor,
    alpha: tl.tensor,
    z: tl.tensor,
    WORD: tl.constexpr,
    READS: tl.constexpr,
) -> None:
    i = word_indices(WORD)
    if READS:
        v = load(x, i, left)
        store(out, i, v + alpha * z.to(v.dtype), left)
    else:
        store(out, i, z, left)


@triton.jit
def _move_tile(
    x: tl.tensor,
    out: tl.tensor,
    left: tl.tensor,
    alpha: tl.int64,
    z0: tl.tensor,
    z1: tl.tensor,
    z2: tl.tensor,
    z3: tl.tensor,
    READS: tl.constexpr,
) -> None:
    step = scalar(alpha, x.dtype.element_ty)
    _move_word(x, out, left, step, z0, 0, READS)
    _move_word(x, out, left, step, z1, 1, READS)
    _move_word(x, out, left, step, z2, 2, READS)
    _move_word(x, out, left, step, z3, 3, READS)


@triton.jit(do_not_specialize=["numel", "alpha", "seed", "block", "sparsity"])
def apply_drawn(
    x: tl.tensor,
    out: tl.tensor,
    numel: tl.int64,
    alpha: tl.int64,
    seed: tl.int64,
    block: tl.int64,
    sparsity: tl.int32,
    READS: tl.constexpr,
    STREAM: tl.constexpr,
) -> None:
    """out = cast(x + alpha * p(seed)) if READS, else p(seed)."""
    tile = tl.program_id(0).to(tl.int64)
    x += tile * TILE
    out += tile * TILE
    left = numel - tile * TILE
    z0, z1, z2, z3 = draw(seed, block + tile * BLOCKS, sparsity, STREAM)
    if left >= TILE:
        _move_tile(x, out, None, alpha, z0, z1, z2, z3, READS)
    else:
        _move_tile(x, out, left.to(tl.int32), alpha, z0, z1, z2, z3, READS)


@triton.jit(do_not_specialize=["count", "alpha", "seed", "sparsity"])
def apply_drawn_list(
    table: tl.tensor,
    out_table: tl.tensor,
    count: tl.int32,
    alpha: tl.int64,
    seed: tl.int64,
    sparsity: tl.int32,
    X: tl.constexpr,
    OUT: tl.constexpr,
    STREAM: tl.constexpr,
) -> None:
    """As `apply_drawn` for each of the `count` pieces of two tables, as `triton_kernels.apply_list`."""
    row, tile, block, left = find(table, count)
    x_at = tl.load(table + 4 * row)
    out_at = tl.load(out_table + 4 * row)
    x = x_at.to(tl.pointer_type(X)) + tile * TILE
    out = out_at.to(tl.pointer_type(OUT)) + tile * TILE
    z0, z1, z2, z3 = draw(seed, block, sparsity, STREAM)
    if (left >= TILE) & ((x_at | out_at) % 16 == 0):
        x = tl.multiple_of(x, 16)
        out = tl.multiple_of(out, 16)
        _move_tile(x, out, None, alpha, z0, z1, z2, z3, True)
    else:
        _move_tile(x, out, tl.minimum(left, TILE).to(tl.int32), alpha, z0, z1, z2, z3, True)


@triton.jit
def _drawn_sums(
    rows: tl.tensor, num_rows: tl.int32, block: tl.int64, sparsity: tl.int32, STREAM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """float64 sums of coeff * p(seed) in the order of the rows, int64 [num_rows, 2] of seeds and coefficients' bits."""
    sums0 = tl.zeros([BLOCKS, 32], tl.float64)
    sums1 = tl.zeros([BLOCKS, 32], tl.float64)
    sums2 = tl.zeros([BLOCKS, 32], tl.float64)
    sums3 = tl.zeros([BLOCKS, 32], tl.float64)
    for row in range(num_rows):
        coeff = scalar(tl.load(rows + 2 * row + 1), tl.float64)
        z0, z1, z2, z3 = draw(tl.load(rows + 2 * row), block, sparsity, STREAM)
        sums0 += coeff * z0.to(tl.float64)
        sums1 += coeff * z1.to(tl.float64)
        sums2 += coeff * z2.to(tl.float64)
        sums3 += coeff * z3.to(tl.float64)
    return sums0, sums1, sums2, sums3


@triton.jit
def _undone(
    undo_alpha: tl.int64,
    undo_seed: tl.int64,
    block: tl.int64,
    sparsity: tl.int32,
    STREAM: tl.constexpr,
    stored: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """undo_alpha * p(undo_seed), or -0, to which adding changes nothing, if undo_alpha is 0."""
    undo = scalar(undo_alpha, stored)
    none = tl.full([BLOCKS, 32], SIGN_32, tl.uint32).to(tl.float32, bitcast=True).to(undo.dtype)
    u0, u1, u2, u3 = none, none, none, none
    if undo_alpha << 1 != 0:
        z0, z1, z2, z3 = draw(undo_seed, block, sparsity, STREAM)
        u0 = undo * z0.to(undo.dtype)
        u1 = undo * z1.to(undo.dtype)
        u2 = undo * z2.to(undo.dtype)
        u3 = undo * z3.to(undo.dtype)
    return u0, u1, u2, u3


@triton.jit
def _update_tile(
    x: tl.tensor,
    left: tl.tensor,
    sums0: tl.tensor,
    sums1: tl.tensor,
    sums2: tl.tensor,
    sums3: tl.tensor,
    u0: tl.tensor,
    u1: tl.tensor,
    u2: tl.tensor,
    u3: tl.tensor,
    block: tl.int64,
    decay: tl.int64,
    scale: tl.int64,
    grid: tl.int64,
    per_grid: tl.int64,
    rounding_seed: tl.int64,
    AT_RANDOM: tl.constexpr,
) -> None:
    stored: tl.constexpr = x.dtype.element_ty
    decay = scalar(decay, stored)
    scale = scalar(scale, stored)
    grid = scalar(grid, stored)
    per_grid = scalar(per_grid, stored)
    update_word(x, left, sums0, u0, 0, decay, scale, grid, per_grid, block, rounding_seed, AT_RANDOM)
    update_word(x, left, sums1, u1, 1, decay, scale, grid, per_grid, block, rounding_seed, AT_RANDOM)
    update_word(x, left, sums2, u2, 2, decay, scale, grid, per_grid, block, rounding_seed, AT_RANDOM)
    update_word(x, left, sums3, u3, 3, decay, scale, grid, per_grid, block, rounding_seed, AT_RANDOM)


@triton.jit(do_not_specialize=["numel", "rows", "num_rows", "block", "sparsity", *UPDATE])
def accumulate_drawn(
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
    sparsity: tl.int32,
    STREAM: tl.constexpr,
) -> None:
    """x += sum_i coeff_i * p(seed_i) * scale, with the options of `base.Update`."""
    tile = tl.program_id(0).to(tl.int64)
    x += tile * TILE
    block += tile * BLOCKS
    left = numel - tile * TILE
    s0, s1, s2, s3 = _drawn_sums(rows, num_rows, block, sparsity, STREAM)
    u0, u1, u2, u3 = _undone(undo_alpha, undo_seed, block, sparsity, STREAM, x.dtype.element_ty)
    u = rounding_seed
    if left >= TILE:
        _update_tile(x, None, s0, s1, s2, s3, u0, u1, u2, u3, block, decay, scale, grid, per_grid, u, AT_RANDOM)
    else:
        p = left.to(tl.int32)
        _update_tile(x, p, s0, s1, s2, s3, u0, u1, u2, u3, block, decay, scale, grid, per_grid, u, AT_RANDOM)


@triton.jit(do_not_specialize=["count", "rows", "num_rows", "sparsity", *UPDATE])
def accumulate_drawn_list(
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
    sparsity: tl.int32,
    X: tl.constexpr,
    STREAM: tl.constexpr,
) -> None:
    """As `accumulate_drawn` for each of the `count` pieces of a table."""
    row, tile, block, left = find(table, count)
    x_at = tl.load(table + 4 * row)
    x = x_at.to(tl.pointer_type(X)) + tile * TILE
    s0, s1, s2, s3 = _drawn_sums(rows, num_rows, block, sparsity, STREAM)
    u0, u1, u2, u3 = _undone(undo_alpha, undo_seed, block, sparsity, STREAM, X)
    u = rounding_seed
    if (left >= TILE) & (x_at % 16 == 0):
        x = tl.multiple_of(x, 16)
        _update_tile(x, None, s0, s1, s2, s3, u0, u1, u2, u3, block, decay, scale, grid, per_grid, u, AT_RANDOM)
    else:
        p = tl.minimum(left, TILE).to(tl.int32)
        _update_tile(x, p, s0, s1, s2, s3, u0, u1, u2, u3, block, decay, scale, grid, per_grid, u, AT_RANDOM)
