"""What a population's arguments must be; `zo_kernels.ops.recurrent` says the same of the compiled forward's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...backends.base import PRECISIONS, RecurrentWeights
from ...ops.checks import check_offset, check_scalar, check_targets, check_tensor, check_tokens
from ...ops.recurrent import check_bfloat16
from .choice import CELLS
from .members import MULTIPLIED, NAMES, wide_dtype

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
    """Raises TypeError, ValueError or GridRangeError, in a sentence, for what does not fit."""
    for name, x, offset in zip(NAMES, weights.tensors, weights.offsets, strict=True):
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
        shape = [len(seeds), 2, heads, len(tokens), head_dim]
        check_states(weights.cell, states, shape, wide_dtype(weights.bias.dtype), weights.bias.device)
        for name, state in zip(STATE_NAMES, states, strict=False):
            check_tensor(state, f"state {name}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "bfloat16" and weights.bias.dtype != torch.float64:
        rounded = {name: getattr(weights, name) for name in MULTIPLIED}
        if weights.cell == "gru":
            rounded["bias"] = weights.bias[:, :1]
        check_bfloat16(rounded, eps)


def check_states(
    cell: str, states: Sequence[Tensor], shape: list[int], dtype: torch.dtype | None, device: torch.device
) -> None:
    """states: those of the cell, each of `shape`. dtype: theirs, None for any."""
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
        _check_begun(states[2])


def _check_begun(normalizer: Tensor) -> None:
    """flashrnn tells a new sequence by n = 0, its `vanilla` by n = 0 everywhere: the others would see no beginning."""
    new = normalizer == 0
    if bool(new.any()) and not bool(new.all()):
        raise ValueError(
            "state n is 0 in some places only, but flashrnn's sLSTM starts all sequences of a call or none: evaluate "
            "new and continued sequences apart"
        )
