"""How the streamed forward cuts a model into tiles for a GPU, and how much memory it takes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..base import RecurrentWeights

TABLE_DTYPE = torch.float16
"""Of the input projections of tokens. Loss differences correlate with those in float64 as well as with float32."""

LOGITS_BYTES = 64 << 20
"""Bytes of the partial sums of logits that exist at a time. Cross-entropy takes as much again a few times."""

ROWS = 128
"""Sequences of a tile. With at most half as many sequences a tile has half of them."""


class Tiles(NamedTuple):
    """How a time step is cut: `units` of a head, and `depth` of the product with loads `stages` ahead."""

    padded: int
    """The size of a head, rounded up to what units and depth divide."""
    units: int
    depth: int
    stages: int = 4
    warps: int = 8
    registers: int | None = None
    """The most that a thread may take, or None if that would spill."""


def tiles_for(dim: int, capability: tuple[int, int]) -> Tiles:
    """Returns the tiles for heads of `dim` units on a GPU of this compute capability; no kernel spills with them.

    Tensor cores that read shared memory (9.0, 10.x) take 64 units, unless rounding up to 64 costs more than 5%. With 32
    units two blocks share a multiprocessor, so that one multiplies while the other computes cells.
    """
    narrow, wide = -(-dim // 32) * 32, -(-dim // 64) * 64
    if capability[0] in (9, 10) and wide <= 1.05 * narrow:
        return Tiles(wide, 64, 64)
    return Tiles(narrow, 32, 32, registers=128)


class Sizes(NamedTuple):
    """The sizes of a model, and what the kernels make of them."""

    cell: str
    vocab: int
    embed: int
    heads: int
    dim: int
    tiles: Tiles

    @classmethod
    def of(cls, weights: RecurrentWeights, capability: tuple[int, int]) -> Sizes:
        (vocab, embed), (_, heads, dim) = weights.embedding.shape, weights.bias.shape
        return cls(weights.cell, vocab, embed, heads, dim, tiles_for(dim, capability))

    @property
    def columns(self) -> int:
        """Of a head: four for a padded unit, or one for Elman."""
        return self.tiles.padded * (1 if self.cell == "elman" else 4)

    @property
    def word_tile(self) -> int:
        """Words of a tile of the output projection."""
        return 128 if self.vocab > 64 else 64

    @property
    def words(self) -> int:
        """The vocabulary, rounded up to whole tiles."""
        return -(-self.vocab // self.word_tile) * self.word_tile

    @property
    def heads_of_slice(self) -> int:
        """Of the partial sums of a logit. The slices fill a GPU even for a single probe; the batch does not matter."""
        slices = max(1, min(self.heads * self.tiles.padded // 4096, 4096 // self.words))
        return -(-self.heads // slices)

    def probe_bytes(self, batch_size: int, distinct: int) -> int:
        """Returns the bytes of the weights, token table and states of one probe, both signs.

        distinct: the number of different tokens in the batch. With more of them than sequences, a step has a table of
        its own, and the weights that it is made of stay.
        """
        padded, columns = self.tiles.padded, self.heads * self.columns
        by_step, states = distinct > batch_size, self.heads * batch_size * padded
        rows = min(distinct, batch_size)
        table = TABLE_DTYPE.itemsize * rows * columns
        made_of = 4 * (self.vocab * self.embed + columns * (self.embed + 1))
        making = 4 * rows * (self.embed + columns)
        recurrence = 2 * padded * (columns + self.heads * self.words) + 4 * self.vocab + 2 * 2 * states
        if self.cell != "elman":
            recurrence += 4 * states
        if by_step:
            return 2 * (made_of + making + 2 * table + recurrence)
        return 2 * (table + max(made_of + making, recurrence))
