"""The Triton kernel of `fused_cell`: the cells of one time step, for all heads and members.

A program owns BLOCK elements (sequence, head, unit) of one member, in the order of the outputs. It reads the gates of
each from the token table or the input projections, from the recurrent product and from the biases, so that nothing of
their size is written in between. What is read for neighbouring units lies side by side.
"""

# No `from __future__ import annotations`: Triton 3.3 takes a tl.constexpr in quotes for an ordinary argument.

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x: tl.tensor) -> tl.tensor:
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _tanh(x: tl.tensor) -> tl.tensor:
    """To 1e-7, as the other roundings of a cell near 1: the difference cancels where x is small."""
    t = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - t) / (1.0 + t)
    return tl.where(x < 0, -y, y)


@triton.jit(do_not_specialize=["batch_size", "table_stride", "bias_stride", "out_stride", "tiles"])
def advance(
    table: tl.tensor,
    index: tl.tensor,
    products: tl.tensor,
    bias: tl.tensor,
    h: tl.tensor,
    c: tl.tensor,
    out: tl.tensor,
    batch_size: tl.int32,
    table_stride: tl.int64,
    bias_stride: tl.int64,
    out_stride: tl.int64,
    tiles: tl.int32,
    CELL: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    GATHERS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Overwrites h and c [M, N, B, D] with the states after one more input, and out [M, B, H] with h.

    table: [M, X, G], of which sequence b reads row index[b] if GATHERS, else row b. products: [M, N, B, K]. bias: [M, N
    biases, N, D]. c: any pointer where the cell has no such state. Strides are those of members. tiles: programs of a
    member, whose B * H elements are below 2^31.
    """
    SIZE: tl.constexpr = HEADS * DIM
    member = (tl.program_id(0) // tiles).to(tl.int64)
    element = (tl.program_id(0) % tiles) * BLOCK + tl.arange(0, BLOCK)
    inside = element < batch_size * SIZE
    sequence, unit = element // SIZE, element % SIZE
    head, at = unit // DIM, unit % DIM
    row = tl.load(index + sequence, mask=inside, other=0) if GATHERS else sequence.to(tl.int64)
    place = (member * HEADS + head) * batch_size + sequence
    state = place * DIM + at
    bias += member * bias_stride + unit
    if CELL == "lstm":
        x = table + member * table_stride + row * (4 * SIZE) + unit
        r = products + place * (4 * DIM) + at
        i = _sum(x, r, bias, inside)
        f = _sum(x + SIZE, r + DIM, bias + SIZE, inside)
        z = _sum(x + 2 * SIZE, r + 2 * DIM, bias + 2 * SIZE, inside)
        o = _sum(x + 3 * SIZE, r + 3 * DIM, bias + 3 * SIZE, inside)
        kept = _sigmoid(f) * tl.load(c + state, mask=inside, other=0.0) + _sigmoid(i) * _tanh(z)
        tl.store(c + state, kept, mask=inside)
        y = _sigmoid(o) * _tanh(kept)
    elif CELL == "gru":
        x = table + member * table_stride + row * (3 * SIZE) + unit
        r = products + place * (3 * DIM) + at
        g = tl.load(r, mask=inside, other=0.0) + tl.load(bias, mask=inside, other=0.0)
        reset = _sigmoid(_sum(x, r + DIM, bias + SIZE, inside))
        update = _sigmoid(_sum(x + SIZE, r + 2 * DIM, bias + 2 * SIZE, inside))
        n = tl.load(x + 2 * SIZE, mask=inside, other=0.0) + tl.load(bias + 3 * SIZE, mask=inside, other=0.0)
        y = update * tl.load(h + state, mask=inside, other=0.0) + (1.0 - update) * _tanh(n + reset * g)
    else:
        x = table + member * table_stride + row * SIZE + unit
        y = _tanh(_sum(x, products + state, bias, inside))
    tl.store(h + state, y, mask=inside)
    tl.store(out + member * out_stride + element, y, mask=inside)


@triton.jit
def _sum(x: tl.tensor, r: tl.tensor, b: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """A gate before its nonlinearity, summed in the order of torch's ops."""
    total = tl.load(x, mask=inside, other=0.0) + tl.load(r, mask=inside, other=0.0)
    return total + tl.load(b, mask=inside, other=0.0)
