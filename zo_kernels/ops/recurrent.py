"""The forward passes of recurrent language models as ops: at many probes at once, and one token after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..backends import backend_for
from ..backends.base import FORWARDS, PRECISIONS, Backend, RecurrentWeights
from ..backends.recurrent import batched
from ..errors import GridRangeError
from .checks import check_scalar, check_seeds, check_targets, check_tokens
from .library import register
from .recurrent_checks import check_meta, check_states, check_weights

_ROUNDED = ("recurrent_weight", "output_weight", "upper_input_weight", "upper_recurrent_weight")
"""The weights that multiply hidden states or outputs of layers."""


@torch.no_grad()
def recurrent_nats(
    weights: RecurrentWeights,
    tokens: Tensor,
    targets: Tensor,
    seeds: Tensor,
    eps: float,
    states: Sequence[Tensor] = (),
    precision: str = "float32",
    forward: str = "auto",
) -> Tensor:
    """Returns cross-entropy sums in nats at theta + eps * p(seeds[i]) and theta - eps * p(seeds[i]): float64 [n, 2].

    theta is not written, and no copy of it is made. Arithmetic is float32 (float64 for float64 weights), and sums over
    positions are float64. Backends and instruction sets agree up to the rounding of this arithmetic, not bit for bit.

    Args:
        weights: theta; see `zo_kernels.models.RecurrentLM` for the shapes.
        tokens: int64 or int32 [B, T], values in [0, V).
        targets: int64 [B, T], values in [0, V), or -100 for a position that is not scored.
        seeds: int64 [n], a CPU tensor.
        eps: finite; rounded to the weights' dtype (float32 for 16-bit weights).
        states: empty, to start from zeros, or the cell's states (h; h and c) before the first token, each
            [n, 2, L * N, B, D] of dtype float32 (float64 for float64 weights). They are overwritten with the states
            after the last token.
        precision: "float32", or "bfloat16" for twice the rate of products with the hidden state, on a processor that
            has it (AVX512_BF16). Hidden states and outputs of layers are then rounded to bfloat16, and the weights
            that multiply them to the bfloat16 grid at |w| + eps, on which w + eps and w - eps are both exact (weights
            that are not perturbed, to bfloat16). eps must be a power of two and at least 1/256 of the largest such
            |w| + eps. Float64 weights and the reference backend stay exact.
        forward: "auto" leaves the choice to the backend. "kernel" is a fused kernel, or an error. "batched" is torch in
            float32 (float64 for float64 weights), with the members of a chunk of probes as a batch.

    Raises:
        RuntimeError: bfloat16 or the forward is not available here.
        GridRangeError: the weights are too large for bfloat16 at this eps.
        ValueError, TypeError: anything else does not fit. The states have not been written then.
    """
    cell, offsets, tensors, residual = weights.cell, list(weights.offsets), list(weights.tensors), weights.residual
    return _recurrent_nats_op(
        tensors, cell, offsets, tokens, targets, seeds, float(eps), list(states), precision, residual, forward
    )


def recurrent_forward(
    weights: RecurrentWeights, batch_size: int, precision: str = "float32", forward: str = "auto"
) -> str:
    """Returns which forward `recurrent_nats` runs for these weights and as many sequences, without running it.

    "kernel" or the name of a GPU's kernel, "batched", or "reference". Raises RuntimeError where `recurrent_nats` would,
    and ValueError for an unknown precision or forward.
    """
    return _choose_forward(backend_for(weights.bias.device.type), weights, batch_size, precision, forward)


@torch.no_grad()
def recurrent_score(
    weights: RecurrentWeights, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy in nats at theta, summed over the scored positions, and how many targets are right.

    A target is right if its logit is the largest; of equal ones the first counts. Returns a float64 and an int64 scalar
    on the CPU. The arithmetic is that of `recurrent_nats`.

    tokens: int64 or int32 [B, T]. targets: int64 [B, T], -100 for a position that is not scored. states: the cell's
    states before the first token, each [L * N, B, D] of float32 (float64 for float64 weights). They are overwritten
    with the states after the last token. Raises as `recurrent_nats` does.
    """
    tensors, residual = list(weights.tensors), weights.residual
    nats, correct = _recurrent_score_op(tensors, weights.cell, tokens, targets, list(states), residual)
    return nats, correct


@torch.no_grad()
def recurrent_logits(weights: RecurrentWeights, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
    """Returns logits [B, V] after the last of tokens [B, T], float32 (float64 for float64 weights).

    states: the cell's states before the first token, each [L * N, B, D] of the logits' dtype. They are overwritten with
    the states after the last token. Raises as `recurrent_nats` does.
    """
    return _recurrent_logits_op(list(weights.tensors), weights.cell, tokens, list(states), weights.residual)


def check_precision(backend: Backend, precision: str) -> None:
    """Raises ValueError for an unknown precision and RuntimeError for one that is not to be had here."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision not in backend.precisions():
        raise RuntimeError(f"{precision} products need {backend.bfloat16_needs}: use precision='float32'")


def _choose_forward(backend: Backend, weights: RecurrentWeights, batch_size: int, precision: str, forward: str) -> str:
    if forward not in FORWARDS:
        raise ValueError(f"forward must be one of {', '.join(FORWARDS)}, not {forward!r}")
    if forward == "batched":
        if precision != "float32":
            raise RuntimeError(f"the forward 'batched' has no {precision} products: use precision='float32'")
        return forward
    check_precision(backend, precision)
    found = backend.recurrent_forward(weights, batch_size, precision)
    if forward == "kernel" and found in ("batched", "reference"):
        dtype = str(weights.bias.dtype).removeprefix("torch.")
        raise RuntimeError(
            f"backend {backend.name!r} has no kernel for {dtype} weights with {precision} products: use the forward "
            "'batched'"
        )
    return found


def check_bfloat16(rounded: Mapping[str, Tensor], eps: float) -> None:
    """Checks that w + eps and w - eps are exact in bfloat16, which has eight bits, for weights on its grid.

    rounded: the weights, by name. Raises ValueError for an eps that is not a power of two, and GridRangeError for a
    weight that is too large.
    """
    if eps == 0.0:
        return
    if math.frexp(abs(eps))[0] != 0.5:
        raise ValueError(f"with bfloat16 eps must be a power of two, not {eps}")
    for name, x in rounded.items():
        largest = float(torch.linalg.vector_norm(x, math.inf))  # without a copy as large as x
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
    residual: bool = False,
    forward: str = "auto",
) -> Tensor:
    check_meta(weights, states, tokens=tokens, targets=targets, seeds=seeds)
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
    residual: bool = False,
    forward: str = "auto",
) -> Tensor:
    checked = check_weights(weights, cell, offsets, residual)
    (vocab_size, _), device = checked.embedding.shape, checked.bias.device
    check_tokens(tokens, vocab_size)
    check_targets(tokens, targets, vocab_size)
    check_seeds(seeds)
    check_scalar(eps, "eps", checked.bias.dtype)
    if states:
        check_states(checked, states, (len(seeds), 2), len(tokens))
    backend = backend_for(device.type)
    if precision != "float32" or forward != "auto":  # which all backends have
        _choose_forward(backend, checked, len(tokens), precision, forward)
    if precision != "float32":
        check_bfloat16({name: getattr(checked, name) for name in checked.names if name in _ROUNDED}, eps)
    batch = tokens.to(device, torch.int64).contiguous(), targets.to(device).contiguous()
    if forward == "batched":
        nats = batched.recurrent_nats(backend, checked, *batch, seeds, eps, states)
    else:
        nats = backend.recurrent_nats(checked, *batch, seeds.contiguous().numpy(), eps, states, precision)
    increment_version(states)
    return nats


def _recurrent_logits_fake(
    weights: Sequence[Tensor], cell: str, tokens: Tensor, states: Sequence[Tensor], residual: bool = False
) -> Tensor:
    check_meta(weights, states, tokens=tokens)
    return states[0].new_empty(tokens.shape[0], weights[0].shape[0])


def _recurrent_logits(
    weights: Sequence[Tensor], cell: str, tokens: Tensor, states: Sequence[Tensor], residual: bool = False
) -> Tensor:
    checked = check_weights(weights, cell, [-1] * len(weights), residual)
    (vocab_size, _), device = checked.embedding.shape, checked.bias.device
    check_tokens(tokens, vocab_size)
    check_states(checked, states, (), len(tokens))
    logits = backend_for(device.type).recurrent_logits(checked, tokens.to(device, torch.int64).contiguous(), states)
    increment_version(states)
    return logits


def _recurrent_score_fake(
    weights: Sequence[Tensor],
    cell: str,
    tokens: Tensor,
    targets: Tensor,
    states: Sequence[Tensor],
    residual: bool = False,
) -> tuple[Tensor, Tensor]:
    check_meta(weights, states, tokens=tokens, targets=targets)
    device = "meta" if weights[0].is_meta else "cpu"
    return torch.empty((), dtype=torch.float64, device=device), torch.empty((), dtype=torch.int64, device=device)


def _recurrent_score(
    weights: Sequence[Tensor],
    cell: str,
    tokens: Tensor,
    targets: Tensor,
    states: Sequence[Tensor],
    residual: bool = False,
) -> tuple[Tensor, Tensor]:
    checked = check_weights(weights, cell, [-1] * len(weights), residual)
    (vocab_size, _), device = checked.embedding.shape, checked.bias.device
    check_tokens(tokens, vocab_size)
    check_targets(tokens, targets, vocab_size)
    check_states(checked, states, (), len(tokens))
    nats, correct = backend_for(device.type).recurrent_score(
        checked, tokens.to(device, torch.int64).contiguous(), targets.to(device).contiguous(), states
    )
    increment_version(states)
    return nats, correct


_recurrent_nats_op = register(
    "recurrent_nats(Tensor[] weights, str cell, SymInt[] offsets, Tensor tokens, Tensor targets, Tensor seeds, "
    "float eps, Tensor(a!)[] states, str precision, bool residual=False, str forward='auto') -> Tensor",
    _recurrent_nats,
    _recurrent_nats_fake,
)
_recurrent_score_op = register(
    "recurrent_score(Tensor[] weights, str cell, Tensor tokens, Tensor targets, Tensor(a!)[] states, "
    "bool residual=False) -> (Tensor, Tensor)",
    _recurrent_score,
    _recurrent_score_fake,
)
_recurrent_logits_op = register(
    "recurrent_logits(Tensor[] weights, str cell, Tensor tokens, Tensor(a!)[] states, bool residual=False) -> Tensor",
    _recurrent_logits,
    _recurrent_logits_fake,
)
