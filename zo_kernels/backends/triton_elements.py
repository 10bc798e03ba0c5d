"""What the Triton kernels are made of: Philox, signs, and the elements of a tile of 32 Philox blocks, 4096 in all.

Full tiles take a path without masks, where loads and stores are 16 bytes wide if the addresses are known to be aligned.
Indices within a tile have 32 bits.
"""

# No `from __future__ import annotations`: Triton 3.3 takes a tl.constexpr in quotes for an ordinary argument.

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(not isinstance(tl.cdiv, triton.JITFunction))
BLOCKS = tl.constexpr(32)
TILE = tl.constexpr(32 * 128)
SIGN_32 = tl.constexpr(0x80000000)
SIGN_64 = tl.constexpr(0x8000000000000000)
RADEMACHER = tl.constexpr(0)


@triton.jit
def philox(
    seed: tl.int64, block: tl.tensor, number: tl.tensor, STREAM: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The four words (uint32) of blocks `block` (int64); `number`, of the same shape, is counter word 3, or 0 if None.

    Written out because tl.philox changed its interface between releases, and is Philox4x64 for 64-bit counters.
    """
    c0 = block.to(tl.uint32)
    c1 = (block >> 32).to(tl.uint32)
    c2 = tl.full(c0.shape, STREAM, tl.uint32)
    c3 = tl.zeros_like(c0) if number is None else number.to(tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed.to(tl.uint64) >> 32).to(tl.uint32)
    m0 = tl.full(c0.shape, 0xD2511F53, tl.uint32)
    m1 = tl.full(c0.shape, 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        hi0 = tl.umulhi(m0, c0)
        lo0 = m0 * c0
        hi1 = tl.umulhi(m1, c2)
        lo1 = m1 * c2
        c0 = hi1 ^ c1 ^ k0
        c1 = lo1
        c2 = hi0 ^ c3 ^ k1
        c3 = lo0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def tile_signs(seed: tl.int64, block: tl.int64) -> tl.tensor:
    """uint32 [TILE]: the top bit is set where p(seed) is +1. `block` is the tile's first.

    The compiler moves words [BLOCKS, 4] between threads, not elements, for it converts layouts before it broadcasts.
    """
    w0, w1, w2, w3 = philox(seed, block + tl.arange(0, BLOCKS), None, RADEMACHER)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [BLOCKS, 4, 1])
    to_top = (31 - tl.arange(0, 32)).to(tl.uint32)
    return tl.reshape(words << to_top[None, None, :], [TILE])


@triton.jit
def times_sign(value: tl.tensor, signs: tl.tensor) -> tl.tensor:
    """value where the top bit of `signs` is set, -value elsewhere."""
    top = signs & SIGN_32
    if value.dtype == tl.float64:
        negated = value.to(tl.uint64, bitcast=True) ^ SIGN_64
        return ((top.to(tl.uint64) << 32) ^ negated).to(tl.float64, bitcast=True)
    else:
        negated = value.to(tl.uint32, bitcast=True) ^ SIGN_32
        return (top ^ negated).to(tl.float32, bitcast=True)


@triton.jit
def scalar(bits: tl.int64, stored: tl.constexpr) -> tl.tensor:
    """A float64, given as its bits, in the dtype that elements stored as `stored` are computed in."""
    value = bits.to(tl.uint64).to(tl.float64, bitcast=True)
    if stored == tl.float64:
        return value
    else:
        return value.to(tl.float32)


@triton.jit
def widened(v: tl.tensor) -> tl.tensor:
    """Elements in the dtype they are computed in."""
    if v.dtype == tl.float64:
        return v
    elif v.dtype == tl.bfloat16:  # a shift, as the cast is on the GPU; the interpreter's cast misreads subnormals
        return (v.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return v.to(tl.float32)


@triton.jit
def rounded(v: tl.tensor, stored: tl.constexpr) -> tl.tensor:
    """Elements rounded to the dtype `stored`, float64 to 16 bits by way of float32."""
    if stored == tl.float64:
        return v.to(tl.float64)
    elif stored == tl.bfloat16 and INTERPRETED:  # whose cast truncates where the GPU's rounds
        u = v.to(tl.float32).to(tl.uint32, bitcast=True)
        is_nan = (u & 0x7FFFFFFF) > 0x7F800000
        to_even = (u + 0x7FFF + ((u >> 16) & 1)) >> 16
        return tl.where(is_nan, 0x7FC0, to_even).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return v.to(tl.float32).to(stored)


@triton.jit
def load(x: tl.tensor, i: tl.tensor, left: tl.tensor) -> tl.tensor:
    """Elements i, in the dtype they are computed in, of a tile that begins at x and has `left`, or all if None."""
    return widened(tl.load(x + i) if left is None else tl.load(x + i, mask=i < left))


@triton.jit
def store(out: tl.tensor, i: tl.tensor, v: tl.tensor, left: tl.tensor) -> None:
    """Elements i of a tile, `rounded` to the dtype that `out` points to."""
    if left is None:
        tl.store(out + i, rounded(v, out.dtype.element_ty))
    else:
        tl.store(out + i, rounded(v, out.dtype.element_ty), mask=i < left)


@triton.jit
def apply_tile(
    x: tl.tensor,
    out: tl.tensor,
    left: tl.tensor,
    alpha: tl.tensor,
    seed: tl.int64,
    next_alpha: tl.tensor,
    next_seed: tl.int64,
    block: tl.int64,
    READS: tl.constexpr,
    NUM_TERMS: tl.constexpr,
) -> None:
    i = tl.arange(0, TILE)
    if READS:  # the load before the signs, that they are made while it is on its way
        v = load(x, i, left) + times_sign(alpha, tile_signs(seed, block))
    else:
        v = times_sign(alpha, tile_signs(seed, block))
    if NUM_TERMS == 2:
        v += times_sign(next_alpha, tile_signs(next_seed, block))
    store(out, i, v, left)
