"""Checks of the weights and states of recurrent language models, for their ops."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.base import CELLS, RecurrentWeights
from .checks import check_offset, check_tensor


def check_weights(tensors: Sequence[Tensor], cell: str, offsets: Sequence[int], residual: bool) -> RecurrentWeights:
    """The op's arguments as weights, once all of them fit each other."""
    if cell not in CELLS:
        raise ValueError(f"unknown cell {cell!r}: choose one of {', '.join(CELLS)}")
    weights = RecurrentWeights.of(cell, offsets, tensors, residual)
    embedding, bias, upper = weights.embedding, weights.bias, weights.upper_bias
    if bias.dim() != 3 or embedding.dim() != 2:
        raise ValueError("embedding must be [V, E] and bias [G, N, D]")
    if upper is not None and (upper.dim() != 4 or len(upper) == 0):
        raise ValueError("upper_bias must be [L - 1, G, N, D]")
    if residual and weights.num_layers == 1:
        raise ValueError("residual connections need a second layer")
    (vocab, embed), (_, heads, dim), shape = embedding.shape, bias.shape, CELLS[cell]
    above, hidden = weights.num_layers - 1, heads * dim
    sizes = {
        "embedding": (vocab, embed),
        "input_weight": (shape.input_rows, heads, dim, embed),
        "recurrent_weight": (shape.recurrent_rows, heads, dim, dim),
        "bias": (shape.biases, heads, dim),
        "output_weight": (vocab, hidden),
        "output_bias": (vocab,),
        "upper_input_weight": (above, shape.input_rows, heads, dim, hidden),
        "upper_recurrent_weight": (above, shape.recurrent_rows, heads, dim, dim),
        "upper_bias": (above, shape.biases, heads, dim),
        "norm_weight": (weights.num_layers, hidden),
        "norm_bias": (weights.num_layers, hidden),
    }
    dtype, device = bias.dtype, bias.device
    for name, x, offset in zip(weights.names, tensors, offsets, strict=True):
        if x.shape != sizes[name]:
            raise ValueError(f"{name} must have shape {list(sizes[name])}, not {list(x.shape)}")
        if x.dtype != dtype or x.device != device:
            raise ValueError(f"{name} is {x.dtype} on {x.device}, but bias {dtype} on {device}")
        check_tensor(x, name)
        if offset != -1:
            check_offset(offset, x.numel())
    return weights


def check_states(weights: RecurrentWeights, states: Sequence[Tensor], leading: tuple[int, ...], batch: int) -> None:
    (_, heads, dim), device = weights.bias.shape, weights.bias.device
    wide = torch.float64 if weights.bias.dtype == torch.float64 else torch.float32
    expected, count = [*leading, weights.num_layers * heads, batch, dim], CELLS[weights.cell].states
    if len(states) != count:
        raise ValueError(f"the cell {weights.cell} has {count} states, but {len(states)} were given")
    for name, state in zip("hc", states, strict=False):
        if list(state.shape) != expected or state.dtype != wide or state.device != device:
            raise ValueError(
                f"state {name} must be {wide} of shape {expected} on {device}, "
                f"not {state.dtype} of shape {list(state.shape)} on {state.device}"
            )
        check_tensor(state, f"state {name}")
    if count == 2:
        (h, c), size = (state.data_ptr() for state in states), states[0].numel() * states[0].element_size()
        if abs(h - c) < size:
            raise ValueError("states h and c overlap in memory: give each memory of its own")


def check_meta(weights: Sequence[Tensor], states: Sequence[Tensor], **others: Tensor) -> None:
    """Refuses meta tensors among real ones: where one tensor has no values there is nothing to compute."""
    others |= {f"state {name}": state for name, state in zip("hc", states, strict=False)}
    for name, x in others.items():
        if x.is_meta != weights[0].is_meta:
            raise ValueError(f"{name} is on {x.device}, but the weights on {weights[0].device}")
