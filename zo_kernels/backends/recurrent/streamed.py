"""The streamed forward: bfloat16 products and the cell in one Triton kernel, a launch a time step. For large heads.

The perturbed weights of a chunk of probes are written once, as bfloat16, and stream through the multiprocessors with
the hidden states at every step. `streamed_kernels.py` has the kernels. Not yet verified on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...philox import BLOCK_SIGNS
from ..base import CELLS, RecurrentWeights
from . import loss, memory, streamed_plan
from .streamed_plan import LOGITS_BYTES, ROWS, Sizes

_BYTES = 2 << 30
"""On a GPU, bytes of a chunk of probes, unless one probe takes more: enough to fill the device."""

_ENOUGH_PROGRAMS = 1024


def refusal(weights: RecurrentWeights, batch_size: int, device: torch.device) -> str | None:
    """Returns why the forward can't compute this on the device, or None if it can: a sentence without a full stop."""
    from ..triton import TritonBackend

    backend = TritonBackend()
    reason = backend.unavailable()
    if reason is not None:
        return reason
    if device.type not in backend.device_types:
        return f"it computes on GPUs, not on {device.type}"
    if weights.bias.dtype == torch.float64:
        return "it computes models of up to 32 bits, not torch.float64"
    if weights.num_layers > 1 or weights.norm_weight is not None:
        return "it computes a single layer without layer norm"
    capability = _capability(device)
    if capability < (8, 0):
        return f"it needs a GPU of compute capability 8.0 or newer, not {capability[0]}.{capability[1]}"
    if device.type == "cuda":
        one, there = Sizes.of(weights, capability).probe_bytes(batch_size, 1), memory.total_bytes(device)
        if one > there:
            return f"one probe takes {one / 1e9:.1f} GB, and the GPU has {there / 1e9:.1f}: use a smaller batch"
    return None


def recurrent_nats(
    weights: RecurrentWeights,
    tokens: Tensor,
    targets: Tensor,
    seeds: npt.NDArray[np.int64],
    eps: float,
    states: Sequence[Tensor],
    queue: tuple[int, int] | None,
) -> Tensor:
    """See `Backend.recurrent_nats`. Products with hidden states are those of bfloat16 (`ops.recurrent_nats`).

    The input projections of tokens are rounded to float16. queue: the device and torch's current cudaStream_t on it, to
    which Triton launches in any case; None for CPU tensors. Raises RuntimeError where `refusal` has a reason.
    """
    reason = refusal(weights, len(tokens), tokens.device)
    if reason is not None:
        raise RuntimeError(f"the streamed forward can't compute this: {reason}")
    scored = (targets >= 0).any(0).tolist()
    num_steps = len(scored) if states else max((t + 1 for t, some in enumerate(scored) if some), default=0)
    if len(seeds) == 0 or len(tokens) == 0 or num_steps == 0:
        return torch.zeros(len(seeds), 2, dtype=torch.float64)
    with torch.cuda.device_of(tokens), torch.autocast(tokens.device.type, enabled=False):
        sizes = Sizes.of(weights, _capability(tokens.device))
        distinct, index_BT = tokens.unique(return_inverse=True)
        chunk = _probes_at_once(sizes.probe_bytes(len(tokens), len(distinct)), tokens.device)
        all_seeds, parts = torch.from_numpy(seeds).to(tokens.device), []
        for first in range(0, len(seeds), chunk):
            some = _Chunk(sizes, weights, all_seeds[first : first + chunk], eps, len(tokens))
            carried = [state[first : first + chunk].flatten(0, 1) for state in states]
            parts.append(some.nats(distinct, index_BT[:, :num_steps], targets, scored, carried))
            del some  # before the next one takes its memory
        return torch.cat(parts).view(-1, 2).cpu()


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (8, 0)


def _probes_at_once(one: int, device: torch.device) -> int:
    there = min(_BYTES, memory.usable_bytes(device)) if device.type == "cuda" else memory.CPU_BYTES
    return max(1, there // one)


class _Chunk:
    """The members of some probes: M of them, two a probe."""

    def __init__(self, sizes: Sizes, weights: RecurrentWeights, seeds: Tensor, eps: float, batch_size: int) -> None:
        from . import streamed_kernels

        self._kernels, self._sizes, self._weights = streamed_kernels, sizes, weights
        self._seeds, self._eps, self._batch, self._members = seeds, eps, batch_size, 2 * len(seeds)
        self._offsets = dict(zip(weights.names, weights.offsets, strict=True))

    def _write(
        self, name: str, out: Tensor, shape: tuple[int, int, int], gates: bool = False, shift: int = 0
    ) -> Tensor:
        """Writes the members of a parameter [outer, heads, rows, K], of which `shape` has the last three sizes."""
        x = getattr(self._weights, name).detach().contiguous()
        heads, rows, inner = shape
        tiles = -(-x.numel() // 4096)
        self._kernels.write_members[(tiles, min(len(self._seeds), -(-_ENOUGH_PROGRAMS // tiles)))](
            x,
            out,
            x.numel(),
            max(0, self._offsets[name]) // BLOCK_SIGNS,
            int(np.float64(self._eps).view(np.int64)),
            self._seeds,
            len(self._seeds),
            HEADS=heads,
            ROWS=rows,
            PER_HEAD=out[0].numel() // (heads * out.shape[-1]),
            K=inner,
            PADDED=out.shape[-1],
            GATES=gates,
            SHIFT=shift,
            PERTURBED=self._offsets[name] >= 0,
            ON_GRID=out.dtype == torch.bfloat16,
            num_warps=8,
            enable_fp_fusion=False,  # each operation is rounded
        )
        return out

    def _zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(self._members, *shape, dtype=dtype, device=self._seeds.device)

    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the token table is made of: embedding [M, V, E], input weight [M, X, E] and bias [M, 1, X], float32.

        X: the columns of all heads.
        """
        sizes = self._sizes
        heads, dim, embed = sizes.heads, sizes.dim, sizes.embed
        gates, all_columns = sizes.columns > sizes.tiles.padded, heads * sizes.columns
        embedding = self._write("embedding", self._zeros(sizes.vocab, embed), (1, sizes.vocab, embed))
        shift = 1 if sizes.cell == "gru" else 0
        weight = self._write("input_weight", self._zeros(all_columns, embed), (heads, dim, embed), gates, shift)
        bias = self._write("bias", self._zeros(all_columns, 1), (heads, dim, 1), gates)
        return embedding, weight, bias.transpose(1, 2)

    def nats(
        self, distinct: Tensor, index_BT: Tensor, targets_BT: Tensor, scored: list[bool], states: Sequence[Tensor]
    ) -> Tensor:
        """Returns the sums of nats, float64 [M], over the steps of index_BT, and overwrites the states."""
        sizes, half = self._sizes, torch.bfloat16
        heads, dim, padded, gru = sizes.heads, sizes.dim, sizes.tiles.padded, sizes.cell == "gru"
        index_TB, inputs = index_BT.t().to(torch.int32).contiguous(), self._inputs()
        by_step = len(distinct) > self._batch  # then a table of all tokens would be larger than that of one step
        if by_step:
            in_order = torch.arange(self._batch, dtype=torch.int32, device=distinct.device)
        else:
            table = _token_table(*inputs, distinct)
            del inputs
        gates = sizes.columns > padded
        recurrent = self._zeros(heads, sizes.columns, padded, dtype=half)
        self._write("recurrent_weight", recurrent, (heads, dim, dim), gates)
        output = self._write("output_weight", self._zeros(heads, sizes.words, padded, dtype=half), (heads, 1, dim))
        output_bias = self._write("output_bias", self._zeros(sizes.vocab, 1), (1, sizes.vocab, 1))[:, :, 0]
        h, h_next = (self._zeros(heads, self._batch, padded, dtype=half) for _ in range(2))
        kept = h if sizes.cell == "elman" else self._zeros(heads, self._batch, padded)
        before = [h, kept] if not gru else [kept]
        for state, mine in zip(states, before, strict=False):
            mine[..., :dim] = state
        if gru:
            h.copy_(kept)
        total = torch.zeros(self._members, dtype=torch.float64, device=h.device)
        for t, index_B in enumerate(index_TB):
            if by_step:
                table, index_B = _token_table(*inputs, distinct[index_B]), in_order
            self._time_step(h, recurrent, table, index_B, kept, h_next, first=t == 0 and not states)
            h, h_next = h_next, h
            if scored[t]:
                total += self._output_nats(h, output, output_bias, targets_BT[:, t])
        for state, mine in zip(states, [kept] if gru else [h, kept], strict=False):
            state.copy_(mine[..., :dim])
        return total

    def _time_step(
        self, h: Tensor, weight: Tensor, table: Tensor, index_B: Tensor, kept: Tensor, h_next: Tensor, first: bool
    ) -> None:
        padded, units, depth, stages, warps, registers = self._sizes.tiles
        rows = ROWS if self._batch > ROWS // 2 else ROWS // 2
        tiles = -(-self._batch // rows) * (padded // units)
        self._kernels.time_step[(self._members * self._sizes.heads * tiles,)](
            h,
            weight,
            table,
            index_B,
            kept,
            h_next,
            self._batch,
            self._sizes.heads,
            table.shape[1],
            CELL=list(CELLS).index(self._sizes.cell),
            P=padded,
            FIRST=first,
            BM=rows,
            BU=units,
            BK=depth,
            STAGES=stages,
            num_warps=warps * rows // ROWS,
            maxnreg=registers,
            enable_fp_fusion=True,
        )

    def _output_nats(self, h: Tensor, weight: Tensor, bias: Tensor, targets_B: Tensor) -> Tensor:
        """Returns the nats of all members at one step, float64 [M], a tile of members and sequences at a time."""
        sizes = self._sizes
        slices = -(-sizes.heads // sizes.heads_of_slice)
        positions = max(1, LOGITS_BYTES // (4 * slices * sizes.vocab))
        rows = min(self._batch, max(ROWS, positions // ROWS * ROWS))
        members, sums = max(1, positions // rows), []
        for member in range(0, self._members, members):
            part = slice(member, member + members)
            total = torch.zeros_like(bias[part, 0], dtype=torch.float64)
            for row in range(0, self._batch, rows):
                targets = targets_B[row : row + rows]
                sliced = h.new_empty(slices, len(total), len(targets), sizes.vocab, dtype=torch.float32)
                self._project(h[part, :, row:], weight[part], sliced)
                total += loss.summed_nats(sliced.sum(0) + bias[part, None], targets)
            sums.append(total)
        return torch.cat(sums)

    def _project(self, h: Tensor, weight: Tensor, out: Tensor) -> None:
        sizes, (slices, members, rows, vocab) = self._sizes, out.shape
        tiles = -(-rows // ROWS) * (sizes.words // sizes.word_tile)
        self._kernels.project[(members * slices * tiles,)](
            h,
            weight,
            out,
            self._batch,
            rows,
            sizes.heads,
            vocab,
            members,
            P=sizes.tiles.padded,
            SLICE=sizes.heads_of_slice,
            BM=ROWS,
            BV=sizes.word_tile,
            BK=sizes.tiles.depth,
            STAGES=3,
            num_warps=8,
            enable_fp_fusion=True,
        )


def _token_table(embedding: Tensor, weight: Tensor, bias: Tensor, words: Tensor) -> Tensor:
    """The input projections [M, R, X] of R words, rounded."""
    return torch.baddbmm(bias, embedding[:, words], weight.transpose(1, 2)).to(streamed_plan.TABLE_DTYPE)
