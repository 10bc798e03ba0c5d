"""Checks the arguments of a population, as `zo_kernels.ops.recurrent` does for the compiled forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...backends.base import PRECISIONS, RecurrentWeights
from ...ops.checks import check_offset, check_scalar, check_targets, check_tensor, check_tokens
from ...ops.recurrent import check_bfloat16
from .choice import CELLS
from .members import MULTIPLIED, wide_dtype

STATE_NAMES = "hcnm"


def check_population(
    weights: RecurrentWeights,
    tokens: Tensor,
    targets: Tensor,
    seeds: Tensor,
    eps: float,
    states: Sequence[Tensor],
    precision: str,
) -> None:
    """Raises TypeError, ValueError or GridRangeError if an argument is wrong."""
    for name, x, offset in zip(weights.names, weights.tensors, weights.offsets, strict=True):
        check_tensor(x, name)
        if offset != -1:
            check_offset(offset, x.numel())
    check_tokens(tokens, len(weights.embedding))
    check_targets(tokens, targets, len(weights.embedding))
    if seeds.dtype != torch.int64 or seeds.dim() != 1 or seeds.device.type != "cpu":
        raise TypeError(f"seeds must be an int64 CPU tensor of one dimension, not {seeds.dtype} {list(seeds.shape)}")
    check_scalar(eps, "eps", weights.bias.dtype)
    if states:
        heads, _, head_dim = weights.bias.shape
        shape = [len(seeds), 2, weights.num_layers * heads, len(tokens), head_dim]
        check_states(weights.cell, states, shape, wide_dtype(weights.bias.dtype), weights.bias.device)
        for name, state in zip(STATE_NAMES, states, strict=False):
            check_tensor(state, f"state {name}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "bfloat16" and weights.bias.dtype != torch.float64:
        rounded = {name: getattr(weights, name) for name in MULTIPLIED if name in weights.names}
        if weights.cell == "gru":
            biases = [name for name in weights.names if name in ("bias", "upper_bias")]
            rounded |= {name: getattr(weights, name)[..., :1, :] for name in biases}
        check_bfloat16(rounded, eps)


def check_states(
    cell: str, states: Sequence[Tensor], shape: list[int], dtype: torch.dtype | None, device: torch.device
) -> None:
    """Raises ValueError unless these are the cell's states, of this shape, device and dtype (None for any dtype)."""
    count = CELLS[cell].states
    if len(states) != count:
        raise ValueError(f"the cell {cell} has {count} states, but {len(states)} were given")
    for name, state in zip(STATE_NAMES, states, strict=False):
        if list(state.shape) != shape or dtype not in (None, state.dtype) or state.device != device:
            raise ValueError(
                f"state {name} must be {dtype or 'a floating dtype'} of shape {shape} on {device}, "
                f"not {state.dtype} of shape {list(state.shape)} on {state.device}"
            )
    if cell == "slstm":
        _check_normalizer(states[2])


def _check_normalizer(normalizer: Tensor) -> None:
    """Raises ValueError if n is 0 in some places only.

    flashrnn takes n = 0 for the start of a sequence, but its `vanilla` does so only if n = 0 everywhere.
    """
    new = normalizer == 0
    if bool(new.any()) and not bool(new.all()):
        raise ValueError(
            "state n is 0 in some places only, but flashrnn's sLSTM starts all sequences of a call or none: evaluate "
            "new and continued sequences in separate calls"
        )
