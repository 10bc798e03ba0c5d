"""The forward passes of recurrent language models as ops: at many probes at once, and one token after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..backends import backend_for
from ..backends.base import CELLS, PRECISIONS, Backend, RecurrentWeights
from ..errors import GridRangeError
from .checks import check_offset, check_scalar, check_targets, check_tensor, check_tokens
from .schema import library, mark_written

__all__ = ["recurrent_logits", "recurrent_nats"]

library.define(
    "recurrent_nats(Tensor[] weights, str cell, SymInt[] offsets, Tensor tokens, Tensor targets, Tensor seeds, "
    "float eps, Tensor(a!)[] states, str precision) -> Tensor"
)
library.define("recurrent_logits(Tensor[] weights, str cell, Tensor tokens, Tensor(a!)[] states) -> Tensor")


@torch.no_grad()
def recurrent_nats(
    weights: RecurrentWeights,
    tokens: Tensor,
    targets: Tensor,
    seeds: Tensor,
    eps: float,
    states: Sequence[Tensor] = (),
    precision: str = "float32",
) -> Tensor:
    """Cross-entropy sums float64 [n, 2] in nats at theta + eps * p(seeds[i]) and theta - eps * p(seeds[i]).

    theta is not written, and no copy of it is made. Arithmetic is float32 (float64 for float64 weights), sums over
    positions float64; backends, and instruction sets, agree to its rounding, not bit for bit.

    weights: see `zo_kernels.models.RecurrentLM`.
    tokens: int64 or int32 [B, T], values in [0, V). targets: int64 [B, T], values in [0, V) or -100, not scored.
    seeds: int64 [n], a CPU tensor. eps: finite; seen in the weights' dtype, float32 for 16-bit weights.
    states: none, to start from zeros, or those of the cell (h; h and c), each [n, 2, N, B, D] of dtype float32 (float64
        for float64 weights), where the segment starts; they are overwritten with where it ends.
    precision: "float32"; or "bfloat16", twice the rate of products with the hidden state, on a processor that has it
        (AVX512_BF16). Then hidden states are rounded to bfloat16, and recurrent and output weights to the bfloat16 grid
        at |w| + eps, on which w + eps and w - eps are both exact (those that are not perturbed, to bfloat16). eps must
        be a power of two, at least 1/256 of the largest such |w| + eps. Float64 weights, and the reference backend,
        stay exact.

    Raises RuntimeError where bfloat16 is not to be had, GridRangeError where the weights are too large for it, and
    ValueError or TypeError for whatever else does not fit; the states are then as they were.
    """
    return torch.ops.zo_kernels.recurrent_nats(
        list(weights.tensors),
        weights.cell,
        list(weights.offsets),
        tokens,
        targets,
        seeds,
        float(eps),
        list(states),
        precision,
    )


@torch.no_grad()
def recurrent_logits(weights: RecurrentWeights, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
    """Logits [B, V] after the last of tokens [B, T], float32 (float64 for float64 weights).

    states: those of the cell, each [N, B, D] of the logits' dtype; they are overwritten with the states after the last
    token. Raises as `recurrent_nats` does.
    """
    return torch.ops.zo_kernels.recurrent_logits(list(weights.tensors), weights.cell, tokens, list(states))


def _weights(tensors: Sequence[Tensor], cell: str, offsets: Sequence[int]) -> RecurrentWeights:
    """The weights, checked."""
    if cell not in CELLS:
        raise ValueError(f"unknown cell {cell!r}: choose one of {', '.join(CELLS)}")
    if len(tensors) != 6 or len(offsets) != 6:
        raise ValueError(f"there are six weights with an offset each, not {len(tensors)} with {len(offsets)}")
    weights = RecurrentWeights(cell, tuple(tensors), tuple(offsets))
    shape = CELLS[cell]
    if weights.bias.dim() != 3 or weights.embedding.dim() != 2:
        raise ValueError("embedding must be [V, E] and bias [G, N, D]")
    (vocab, embed), (_, heads, dim) = weights.embedding.shape, weights.bias.shape
    expected = {
        "embedding": (vocab, embed),
        "input_weight": (shape.input_rows, heads, dim, embed),
        "recurrent_weight": (shape.recurrent_rows, heads, dim, dim),
        "bias": (shape.biases, heads, dim),
        "output_weight": (vocab, heads * dim),
        "output_bias": (vocab,),
    }
    for name, x, offset in zip(expected, tensors, offsets, strict=True):
        if tuple(x.shape) != expected[name]:
            raise ValueError(f"{name} must have shape {list(expected[name])}, not {list(x.shape)}")
        if x.dtype != weights.bias.dtype or x.device != weights.bias.device:
            raise ValueError(
                f"{name} is {x.dtype} on {x.device}, but bias {weights.bias.dtype} on {weights.bias.device}"
            )
        check_tensor(x, name)
        if offset != -1:
            check_offset(offset, x.numel())
    return weights


def _check_states(weights: RecurrentWeights, states: Sequence[Tensor], leading: tuple[int, ...], batch: int) -> None:
    wide = torch.float64 if weights.bias.dtype == torch.float64 else torch.float32
    expected = [*leading, weights.bias.shape[1], batch, weights.bias.shape[2]]
    count = CELLS[weights.cell].states
    if len(states) != count:
        raise ValueError(f"the cell {weights.cell} has {count} states, but {len(states)} were given")
    for name, state in zip("hc", states, strict=False):
        if list(state.shape) != expected or state.dtype != wide or state.device != weights.bias.device:
            raise ValueError(
                f"state {name} must be {wide} of shape {expected} on {weights.bias.device}, "
                f"not {state.dtype} of shape {list(state.shape)} on {state.device}"
            )
        check_tensor(state, f"state {name}")
    if count == 2:
        (h, c), size = (state.data_ptr() for state in states), states[0].numel() * states[0].element_size()
        if abs(h - c) < size:
            raise ValueError("states h and c overlap in memory: give each memory of its own")


def _check_meta(weights: Sequence[Tensor], **others: Tensor) -> None:
    """Where one tensor has no values there is nothing to compute, and the others must not have any either."""
    for name, x in others.items():
        if x.is_meta != weights[0].is_meta:
            raise ValueError(f"{name} is on {x.device}, but the weights on {weights[0].device}")


def check_precision(backend: Backend, precision: str) -> None:
    """Raises ValueError for an unknown precision and RuntimeError for one that is not to be had here."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision not in backend.precisions():
        raise RuntimeError(f"{precision} products need {backend.bfloat16_needs}: use precision='float32'")


def check_bfloat16(rounded: Mapping[str, Tensor], eps: float) -> None:
    """w + eps and w - eps must be exact in bfloat16, which has eight bits, for weights on its grid.

    rounded: the weights, by name. Raises ValueError or GridRangeError.
    """
    if eps == 0.0:
        return
    if math.frexp(abs(eps))[0] != 0.5:
        raise ValueError(f"with bfloat16 eps must be a power of two, not {eps}")
    for name, x in rounded.items():
        largest = float(x.abs().max())
        if largest + abs(eps) >= 256 * abs(eps):
            raise GridRangeError(
                f"parameter {name} (largest magnitude {largest:.3g}) is too large for bfloat16 at eps {eps}: use a "
                "larger eps or float32"
            )


def _recurrent_nats_fake(
    weights: Sequence[Tensor],
    cell: str,
    offsets: Sequence[int],
    tokens: Tensor,
    targets: Tensor,
    seeds: Tensor,
    eps: float,
    states: Sequence[Tensor],
    precision: str,
) -> Tensor:
    named = {f"state {name}": state for name, state in zip("hc", states, strict=False)}
    _check_meta(weights, tokens=tokens, targets=targets, seeds=seeds, **named)
    return torch.empty(seeds.shape[0], 2, dtype=torch.float64, device=seeds.device)


def _recurrent_nats(
    weights: Sequence[Tensor],
    cell: str,
    offsets: Sequence[int],
    tokens: Tensor,
    targets: Tensor,
    seeds: Tensor,
    eps: float,
    states: Sequence[Tensor],
    precision: str,
) -> Tensor:
    checked = _weights(weights, cell, offsets)
    check_tokens(tokens, len(checked.embedding))
    check_targets(tokens, targets, len(checked.embedding))
    if seeds.dtype != torch.int64 or seeds.dim() != 1 or seeds.device.type != "cpu":
        raise TypeError(f"seeds must be an int64 CPU tensor of one dimension, not {seeds.dtype} {list(seeds.shape)}")
    check_scalar(eps, "eps", checked.bias.dtype)
    if states:
        _check_states(checked, states, (len(seeds), 2), len(tokens))
    device = checked.bias.device
    backend = backend_for(device.type)
    check_precision(backend, precision)
    if precision == "bfloat16":
        check_bfloat16({name: getattr(checked, name) for name in ("recurrent_weight", "output_weight")}, eps)
    nats = backend.recurrent_nats(
        checked,
        tokens.to(device, torch.int64).contiguous(),
        targets.to(device).contiguous(),
        seeds.contiguous().numpy(),
        eps,
        states,
        precision,
    )
    for state in states:
        mark_written(state)
    return nats


def _recurrent_logits_fake(weights: Sequence[Tensor], cell: str, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
    _check_meta(weights, tokens=tokens, **{f"state {name}": state for name, state in zip("hc", states, strict=False)})
    return states[0].new_empty(tokens.shape[0], weights[0].shape[0])


def _recurrent_logits(weights: Sequence[Tensor], cell: str, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
    checked = _weights(weights, cell, [-1] * 6)
    check_tokens(tokens, len(checked.embedding))
    _check_states(checked, states, (), len(tokens))
    device = checked.bias.device
    logits = backend_for(device.type).recurrent_logits(checked, tokens.to(device, torch.int64).contiguous(), states)
    for state in states:
        mark_written(state)
    return logits


for _name, _implementation, _fake in (
    ("recurrent_nats", _recurrent_nats, _recurrent_nats_fake),
    ("recurrent_logits", _recurrent_logits, _recurrent_logits_fake),
):
    library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"zo_kernels::{_name}", _fake, lib=library)
