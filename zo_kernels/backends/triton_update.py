"""What the accumulating Triton kernels do to a tile: sums of signs, and the update of its elements by any sums."""

# No `from __future__ import annotations`: Triton 3.3 takes a tl.constexpr in quotes for an ordinary argument.

import triton
import triton.language as tl

from .triton_elements import BLOCKS, RADEMACHER, SIGN_32, SIGN_64, load, philox, scalar, store, times_sign

STOCHASTIC_ROUNDING = tl.constexpr(3)


@triton.jit
def _round_even(v: tl.tensor) -> tl.tensor:
    """To the nearest integer, ties to even: beside 2^23, or 2^52 in float64, there are no bits for a fraction."""
    if v.dtype == tl.float64:
        large = 4503599627370496.0
        sign = v.to(tl.uint64, bitcast=True) & SIGN_64
        rounded = ((tl.abs(v) + large) - large).to(tl.uint64, bitcast=True)
    else:
        large = 8388608.0
        sign = v.to(tl.uint32, bitcast=True) & SIGN_32
        rounded = ((tl.abs(v) + large) - large).to(tl.uint32, bitcast=True)
    return tl.where(tl.abs(v) < large, (rounded | sign).to(v.dtype, bitcast=True), v)


@triton.jit
def _random_bits(seed: tl.int64, block: tl.int64, WORD: tl.constexpr) -> tl.tensor:
    """uint32 [BLOCKS, 32]: 16 random bits for each of the elements 32 * WORD to 32 * WORD + 31 of the tile's blocks."""
    blocks = tl.broadcast_to((block + tl.arange(0, BLOCKS))[:, None], [BLOCKS, 4])
    calls = tl.broadcast_to((4 * WORD + tl.arange(0, 4))[None, :], [BLOCKS, 4])
    w0, w1, w2, w3 = philox(seed, blocks, calls, STOCHASTIC_ROUNDING)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCKS, 16, 1])
    halves = words >> (16 * tl.arange(0, 2)).to(tl.uint32)[None, None, :]
    return tl.reshape(halves & 0xFFFF, [BLOCKS, 32])


@triton.jit
def _round_at_random(v: tl.tensor, random: tl.tensor, stored: tl.constexpr) -> tl.tensor:
    """float32 rounded by 16 random bits to numbers of the 16-bit dtype `stored`. docs/contract.md has the rule."""
    bits = v.to(tl.uint32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    if stored == tl.bfloat16:
        rounded = (bits + random) & 0xFFFF0000
    else:  # below 2^-14 float16's numbers are multiples of 2^-24, and above it has 13 bits less than float32
        is_small = magnitude < 0x38800000
        fixed = tl.where(is_small, magnitude, 0).to(tl.float32, bitcast=True) * 1099511627776.0
        steps = (fixed.to(tl.int32).to(tl.uint32) + random) >> 16
        low = (steps.to(tl.int32).to(tl.float32) * 5.9604644775390625e-08).to(tl.uint32, bitcast=True)
        high = (magnitude + (random >> 3)) & 0xFFFFE000
        rounded = tl.where(is_small, low, high) | (bits & SIGN_32)
    return tl.where(magnitude < 0x7F800000, rounded, bits).to(tl.float32, bitcast=True)


@triton.jit
def word_indices(WORD: tl.constexpr) -> tl.tensor:
    """int32 [BLOCKS, 32]: indices in a tile of elements 32 * WORD to 32 * WORD + 31 of its blocks."""
    return tl.arange(0, BLOCKS)[:, None] * 128 + (32 * WORD + tl.arange(0, 32))[None, :]


@triton.jit
def update_word(
    x: tl.tensor,
    left: tl.tensor,
    sums: tl.tensor,
    undone: tl.tensor,
    WORD: tl.constexpr,
    decay: tl.tensor,
    scale: tl.tensor,
    grid: tl.tensor,
    per_grid: tl.tensor,
    block: tl.int64,
    rounding_seed: tl.int64,
    AT_RANDOM: tl.constexpr,
) -> None:
    """Updates elements `word_indices(WORD)` of a tile by their sums. `undone` is the term to undo."""
    i = word_indices(WORD)
    v = load(x, i, left)
    v += undone
    v *= decay
    v += sums.to(v.dtype) * scale
    v = tl.where(grid == 0.0, v, _round_even(v * per_grid) * grid)
    if AT_RANDOM:
        v = _round_at_random(v, _random_bits(rounding_seed, block, WORD), x.dtype.element_ty)
    store(x, i, v, left)


@triton.jit
def _add_weighted(sums: tl.tensor, word: tl.tensor, q: tl.tensor) -> tl.tensor:
    k = tl.arange(0, 32).to(tl.uint32)
    return sums + (word[None, :] >> k[:, None]) * q


@triton.jit
def _bit_sums(weighted: tl.tensor) -> tl.tensor:
    """sum(q * bit k) from sum(q * (word >> k)), k = 0 .. 31: its difference to twice the next.

    A thread has all 32 rows: picking the next takes no instruction once compiled.
    """
    k = tl.arange(0, 32)
    is_next = k[None, :] == k[:, None] + 1
    return weighted - 2 * tl.sum(tl.where(is_next[:, :, None], weighted[None, :, :], 0), axis=1)


@triton.jit
def _update_signs(
    x: tl.tensor,
    left: tl.tensor,
    weighted: tl.tensor,
    total: tl.tensor,
    undo_word: tl.tensor,
    WORD: tl.constexpr,
    undo: tl.tensor,
    decay: tl.tensor,
    scale: tl.tensor,
    grid: tl.tensor,
    per_grid: tl.tensor,
    block: tl.int64,
    rounding_seed: tl.int64,
    AT_RANDOM: tl.constexpr,
) -> None:
    """`update_word` by sums of signs, those of word WORD of each block.

    sum(+-q) = 2 * sum(q * bit) - sum(q), modulo 2^32, in which it fits. The sign to undo goes through the exchange
    between threads in the free lowest bit of the first term.
    """
    undo_bits = (undo_word[None, :] >> tl.arange(0, 32).to(tl.uint32)[:, None]) & 1
    packed = tl.trans((_bit_sums(weighted) << 1) | undo_bits)
    sums = ((packed & 0xFFFFFFFE) - total).to(tl.int32, bitcast=True)
    undone = times_sign(undo, packed << 31)
    update_word(x, left, sums, undone, WORD, decay, scale, grid, per_grid, block, rounding_seed, AT_RANDOM)


@triton.jit
def weighted_sums(
    rows: tl.tensor, num_rows: tl.int32, block: tl.int64
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The sums of q * (word >> k) for words 0 to 3 of each block, and that of q; rows int64 [num_rows, 2] of (seed, q).

    A thread owns a Philox block and keeps the sums of its 128 elements in registers. Per seed and element it takes a
    shift and a multiply-add, modulo 2^32; `_bit_sums` gets those of the bits. Picking the bits in the loop takes twice
    as many instructions.
    """
    sums0 = tl.zeros([32, BLOCKS], tl.uint32)
    sums1 = tl.zeros([32, BLOCKS], tl.uint32)
    sums2 = tl.zeros([32, BLOCKS], tl.uint32)
    sums3 = tl.zeros([32, BLOCKS], tl.uint32)
    total = tl.zeros([], tl.uint32)
    for row in range(num_rows):
        seed = tl.load(rows + 2 * row)
        q = tl.load(rows + 2 * row + 1).to(tl.uint32)
        w0, w1, w2, w3 = philox(seed, block + tl.arange(0, BLOCKS), None, RADEMACHER)
        sums0 = _add_weighted(sums0, w0, q)
        sums1 = _add_weighted(sums1, w1, q)
        sums2 = _add_weighted(sums2, w2, q)
        sums3 = _add_weighted(sums3, w3, q)
        total += q
    return sums0, sums1, sums2, sums3, total


@triton.jit
def update_tile(
    x: tl.tensor,
    left: tl.tensor,
    sums0: tl.tensor,
    sums1: tl.tensor,
    sums2: tl.tensor,
    sums3: tl.tensor,
    total: tl.tensor,
    block: tl.int64,
    undo_seed: tl.int64,
    undo_alpha: tl.int64,
    decay: tl.int64,
    scale: tl.int64,
    grid: tl.int64,
    per_grid: tl.int64,
    rounding_seed: tl.int64,
    AT_RANDOM: tl.constexpr,
) -> None:
    """x += sums * scale, with the options of `base.Update`; scalars are bits, and a tile has `left`, or all if None.

    Undo and decay have no flag, for adding 0 * p and multiplying by 1 change no result: the sign of a zero is lost to
    the sum, which is never -0.
    """
    stored: tl.constexpr = x.dtype.element_ty
    undo = scalar(undo_alpha, stored)
    decay = scalar(decay, stored)
    scale = scalar(scale, stored)
    grid = scalar(grid, stored)
    per_grid = scalar(per_grid, stored)
    w0, w1, w2, w3 = philox(undo_seed, block + tl.arange(0, BLOCKS), None, RADEMACHER)
    _update_signs(x, left, sums0, total, w0, 0, undo, decay, scale, grid, per_grid, block, rounding_seed, AT_RANDOM)
    _update_signs(x, left, sums1, total, w1, 1, undo, decay, scale, grid, per_grid, block, rounding_seed, AT_RANDOM)
    _update_signs(x, left, sums2, total, w2, 2, undo, decay, scale, grid, per_grid, block, rounding_seed, AT_RANDOM)
    _update_signs(x, left, sums3, total, w3, 3, undo, decay, scale, grid, per_grid, block, rounding_seed, AT_RANDOM)
