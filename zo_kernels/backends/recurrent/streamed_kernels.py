"""The Triton kernels that `zo_kernels.backends.recurrent.streamed` launches: members, time steps, output projections.

A member is the model moved along one probe with one sign. Sizes are padded with zeros, and padded units stay 0 in all
cells, so no column needs a mask: P is the head size, padded, W the columns of a unit: 4 for LSTM and GRU, 1 for Elman.

The four columns of a unit lie in one thread's accumulators of a tensor core product if column `gate` of unit u is
number 16 * (u // 4) + 8 * (gate // 2) + 2 * (u % 4) + gate % 2 (`_row`). They are the gates i, f, z, o of an LSTM. Of a
GRU they are the recurrent term of the candidate, r, z, and the candidate's input, whose recurrent weights are 0.

Where a tile begins is a 64-bit number. Sizes that may change from call to call are not specialised on.
"""

# No `from __future__ import annotations`: Triton 3.3 takes a tl.constexpr in quotes for an ordinary argument.

import triton
import triton.language as tl

from ..triton_elements import BLOCKS, INTERPRETED, TILE, rounded, scalar, tile_signs, times_sign, widened

LSTM, GRU, ELMAN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
LIMIT = tl.constexpr(27.0)


@triton.jit
def _row(gate: tl.tensor, unit: tl.tensor) -> tl.tensor:
    return 16 * (unit // 4) + 8 * (gate // 2) + 2 * (unit % 4) + gate % 2


@triton.jit
def _on_bfloat16_grid(w: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """w (float32) rounded to a multiple of the last bit that a bfloat16 of size |w| + eps has."""
    size = tl.abs(w) + tl.abs(eps)
    power = (size.to(tl.uint32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    shifter = power * 98304.0  # 1.5 * 2^16
    return (w + shifter) - shifter


@triton.jit(do_not_specialize=["numel", "block", "eps", "seeds", "num_seeds"])
def write_members(
    x: tl.tensor,
    out: tl.tensor,
    numel: tl.int64,
    block: tl.int64,
    eps: tl.int64,
    seeds: tl.tensor,
    num_seeds: tl.int32,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    PER_HEAD: tl.constexpr,
    K: tl.constexpr,
    PADDED: tl.constexpr,
    GATES: tl.constexpr,
    SHIFT: tl.constexpr,
    PERTURBED: tl.constexpr,
    ON_GRID: tl.constexpr,
) -> None:
    """out[2 k + s] = x + eps * p(seeds[k]) for s = 0, x - eps * p(seeds[k]) for s = 1, at other places.

    x [outer, HEADS, ROWS, K] goes to out [members, HEADS, PER_HEAD, PADDED]. Row r of outer index o is row
    o * ROWS + r, or with GATES `_row(o + SHIFT, r)`. eps (its bits) is not added unless PERTURBED. ON_GRID: x is
    rounded such that both members are exact in bfloat16. What x does not have is not written.
    """
    numel = numel.to(tl.int64)
    tile = tl.program_id(0).to(tl.int64)
    first = tile * TILE
    i = tl.arange(0, TILE)
    there = i < numel - first
    v = widened(tl.load(x + first + i, mask=there))
    eps = scalar(eps, x.dtype.element_ty)
    if PERTURBED and ON_GRID:
        v = _on_bfloat16_grid(v, eps)
    inner = (first % K).to(tl.int32) + i
    row = (first // K).to(tl.int32) + inner // K  # of x
    r = row % ROWS
    head = row // ROWS % HEADS
    o = row // (ROWS * HEADS)
    to = _row(o + SHIFT, r) if GATES else o * ROWS + r
    at = out + ((head * PER_HEAD + to).to(tl.int64) * PADDED + inner % K)
    member = tl.full([], HEADS, tl.int64) * PER_HEAD * PADDED
    for k in range(tl.program_id(1), num_seeds, tl.num_programs(1)):
        plus = at + 2 * k * member
        if PERTURBED:
            moved = times_sign(eps, tile_signs(tl.load(seeds + k), block + tile * BLOCKS))
            tl.store(plus, rounded(v + moved, out.dtype.element_ty), mask=there)
            tl.store(plus + member, rounded(v - moved, out.dtype.element_ty), mask=there)
        else:
            tl.store(plus, rounded(v, out.dtype.element_ty), mask=there)
            tl.store(plus + member, rounded(v, out.dtype.element_ty), mask=there)


@triton.jit
def _product(a: tl.tensor, b: tl.tensor, sums: tl.tensor) -> tl.tensor:
    if INTERPRETED:  # by NumPy, which has no bfloat16; in float32 the products are exact as well
        return tl.dot(widened(a), widened(b), sums, input_precision="ieee")
    else:
        return tl.dot(a, b, sums)


@triton.jit
def _exp_minus(x: tl.tensor) -> tl.tensor:
    """exp(-x), but for x below -LIMIT, where 1 + exp(-x) would be too large for a product of three of them."""
    return tl.exp2(tl.maximum(x, -LIMIT, propagate_nan=tl.PropagateNan.ALL) * -1.4426950408889634)


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    e = _exp_minus(2.0 * x)
    return (1.0 - e) / (1.0 + e)


@triton.jit
def _gates(sums: tl.tensor, BM: tl.constexpr, BU: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The columns 0 to 3 of each unit, [BM, BU] each, from [BM, 4 * BU] ordered by `_row`."""
    x = tl.permute(tl.reshape(sums, [BM, BU // 4, 2, 4, 2]), (0, 1, 3, 2, 4))
    even, odd = tl.split(x)
    g0, g2 = tl.split(even)
    g1, g3 = tl.split(odd)
    shape: tl.constexpr = [BM, BU]
    return tl.reshape(g0, shape), tl.reshape(g1, shape), tl.reshape(g2, shape), tl.reshape(g3, shape)


@triton.jit(do_not_specialize=["index", "batch", "heads", "table_rows"])
def time_step(
    h: tl.tensor,
    weight: tl.tensor,
    table: tl.tensor,
    index: tl.tensor,
    memory: tl.tensor,
    h_next: tl.tensor,
    batch: tl.int32,
    heads: tl.int32,
    table_rows: tl.int32,
    CELL: tl.constexpr,
    P: tl.constexpr,
    FIRST: tl.constexpr,
    BM: tl.constexpr,
    BU: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """One time step: the columns h W^T + table[index] of BM sequences and BU units, and their cells, in registers.

    h and h_next [members, heads, batch, P] bfloat16; weight [members, heads, W * P, P] bfloat16; table [members,
    table_rows, heads, W * P]; index [batch] int32; memory [members, heads, batch, P] float32: c of an LSTM, h of a GRU.
    FIRST: the states before are 0, and not read. The tiles of a member's head run one after another, so its weights
    stay in the L2 cache.
    """
    W: tl.constexpr = 1 if CELL == ELMAN else 4
    tiles_u: tl.constexpr = P // BU
    per_head = tl.cdiv(batch, BM) * tiles_u
    program = tl.program_id(0)
    member_head = (program // per_head).to(tl.int64)
    tile = program % per_head
    first_row = tile // tiles_u * BM
    first_unit = tile % tiles_u * BU
    rows = tl.arange(0, BM)
    here = (rows < batch - first_row)[:, None]
    columns = tl.arange(0, W * BU)
    ks = tl.arange(0, BK)

    token = tl.load(index + first_row + rows, mask=rows < batch - first_row, other=0).to(tl.int64)
    member = member_head // heads
    head = member_head % heads
    of_token = table + (((member * table_rows + token) * heads + head) * (W * P) + W * first_unit)
    sums = tl.load(of_token[:, None] + columns[None, :], mask=here, other=0.0).to(tl.float32)
    begin = (member_head * batch + first_row) * P
    if not FIRST:
        a = h + begin + rows[:, None] * P + ks[None, :]
        b = weight + (member_head * (W * P) + W * first_unit) * P + columns[None, :] * P + ks[:, None]
        for _ in tl.range(0, P, BK, num_stages=STAGES):
            sums = _product(tl.load(a, mask=here, other=0.0), tl.load(b), sums)
            a += BK
            b += BK

    cells = rows[:, None] * P + tl.arange(0, BU)[None, :]
    begin += first_unit
    if CELL == LSTM:
        i, f, z, o = _gates(sums, BM, BU)
        i = 1.0 + _exp_minus(i)
        f = 1.0 + _exp_minus(f)
        z = _exp_minus(2.0 * z)
        # sigmoid(f) c + sigmoid(i) tanh(z) over one denominator, sigmoid(o) tanh(c) likewise
        above = (1.0 - z) * f
        below = i * (1.0 + z)
        if not FIRST:
            above += tl.load(memory + begin + cells, mask=here, other=0.0) * below
        c = above / (below * f)
        tl.store(memory + begin + cells, c, mask=here)
        e = _exp_minus(2.0 * c)
        value = (1.0 - e) / ((1.0 + e) * (1.0 + _exp_minus(o)))
    elif CELL == GRU:
        g, r, z, n = _gates(sums, BM, BU)
        n = _tanh(n + g / (1.0 + _exp_minus(r)))
        z = _exp_minus(z)
        value = n * z
        if not FIRST:
            value += tl.load(memory + begin + cells, mask=here, other=0.0)
        value /= 1.0 + z
        tl.store(memory + begin + cells, value, mask=here)
    else:
        value = _tanh(sums)
    tl.store(h_next + begin + cells, rounded(value, h_next.dtype.element_ty), mask=here)


@triton.jit(do_not_specialize=["batch", "rows", "heads", "vocab", "members"])
def project(
    h: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    batch: tl.int32,
    rows: tl.int32,
    heads: tl.int32,
    vocab: tl.int32,
    members: tl.int32,
    P: tl.constexpr,
    SLICE: tl.constexpr,
    BM: tl.constexpr,
    BV: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """out[s, m, b] = the sum of h W^T over the SLICE heads from s * SLICE on: the logits are the sum over s.

    h [members, heads, batch, P] from the first of `rows` sequences on; weight [members, heads, V padded to BV, P]; out
    float32 [slices, members, rows, vocab].
    """
    tiles_v = tl.cdiv(vocab, BV)
    tiles_b = tl.cdiv(rows, BM)
    slices = tl.cdiv(heads, SLICE)
    program = tl.program_id(0)
    first_word = program % tiles_v * BV
    program = program // tiles_v
    first_row = program % tiles_b * BM
    program = program // tiles_b
    part = program % slices
    member = (program // slices).to(tl.int64)
    row = tl.arange(0, BM)
    here = (row < rows - first_row)[:, None]
    word = tl.arange(0, BV)
    ks = tl.arange(0, BK)

    head = member * heads + part * SLICE
    a = h + (head * batch + first_row) * P + row[:, None] * P + ks[None, :]
    b = weight + (head * (tiles_v * BV) + first_word) * P + word[None, :] * P + ks[:, None]
    next_a = (batch.to(tl.int64) - 1) * P
    next_b = (tiles_v * BV - 1).to(tl.int64) * P
    sums = tl.zeros([BM, BV], tl.float32)
    steps: tl.constexpr = P // BK
    for k in tl.range(0, tl.minimum(SLICE, heads - part * SLICE) * steps, num_stages=STAGES):
        sums = _product(tl.load(a, mask=here, other=0.0), tl.load(b), sums)
        last = (k + 1) % steps == 0  # of the head
        a += BK + tl.where(last, next_a, 0)
        b += BK + tl.where(last, next_b, 0)
    at = out + ((part * members.to(tl.int64) + member) * rows + first_row) * vocab + first_word
    tl.store(at + (row[:, None] * vocab + word[None, :]), sums, mask=here & (word < vocab - first_word)[None, :])
