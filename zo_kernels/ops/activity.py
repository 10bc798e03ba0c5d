"""Activity perturbation of recurrent language models as an op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import backend_for
from ..backends.activity.problem import ActivityGradient, ActivityProblem
from ..backends.base import RecurrentWeights
from .checks import check_scalar, check_seeds, check_targets, check_tokens
from .library import register
from .recurrent_checks import check_meta, check_states, check_weights


@torch.no_grad()
def recurrent_activity(
    weights: RecurrentWeights,
    tokens: Tensor,
    targets: Tensor,
    seeds: Tensor,
    sigma: float,
    states: Sequence[Tensor] = (),
    *,
    credit_length: int | None = None,
    local_gradient: bool = False,
    first_sequence: int = 0,
) -> ActivityGradient:
    """Estimates the gradient of the cross-entropy in nats, summed over the scored positions, by activity perturbation.

    Each probe moves all pre-activations of the recurrent layer at once, by sigma or -sigma, with a sign of its own for
    each sequence, step and unit. Two forward passes per probe and one without perturbation give an estimate of the
    gradient of each pre-activation, and these the gradient of the weights. The gradient of the output layer is exact.
    docs/activity.md has the estimator, `zo_kernels.philox` the generator of the signs.

    The error of the estimate falls with the number of probes times sequences. Its bias is O(sigma^2), unless the credit
    length is shorter than the context.

    Args:
        weights: of one layer without layer norm; their offsets do not matter. See `zo_kernels.models.RecurrentLM`.
        tokens: int64 or int32 [B, T], values in [0, V).
        targets: int64 [B, T], values in [0, V), or -100 for a position that is not scored.
        seeds: int64 [n], a CPU tensor: one probe each.
        sigma: positive and finite.
        states: empty, to start from zeros, or the cell's states before the first token, each [N, B, D] of dtype float32
            (float64 for float64 weights). They are not changed.
        credit_length: number of losses that a step is credited with, from that of the same step on, at least 1. None:
            all that follow. A short one removes noise and adds bias.
        local_gradient: whether the effect of a step on the loss of the same step is computed exactly, for which the
            gradient of the loss goes backward through the output layer and the cell of that step, instead of estimated.
            It removes noise. With a credit length of 1 nothing is left to estimate, and no probe is evaluated.
        first_sequence: number of the first sequence among those of the step. With the right one, the gradients of
            micro-batches add up to that of the batch.

    Returns `ActivityGradient`: the sum of nats at the weights, those of the probes [n, 2], and six gradients. Without
    probes, or if none is evaluated, the gradients have no estimated part.

    Raises:
        ValueError, TypeError: something does not fit.
    """
    length = tokens.shape[-1] if credit_length is None else credit_length
    clean, nats, gradients = _recurrent_activity_op(
        list(weights.tensors),
        weights.cell,
        tokens,
        targets,
        seeds,
        float(sigma),
        list(states),
        length,
        local_gradient,
        first_sequence,
        weights.residual,
    )
    return ActivityGradient(clean, nats, tuple(gradients))


def _recurrent_activity_fake(
    weights: Sequence[Tensor],
    cell: str,
    tokens: Tensor,
    targets: Tensor,
    seeds: Tensor,
    sigma: float,
    states: Sequence[Tensor],
    credit_length: int,
    local_gradient: bool,
    first_sequence: int,
    residual: bool = False,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    check_meta(weights, states, tokens=tokens, targets=targets, seeds=seeds)
    device = "meta" if weights[0].is_meta else "cpu"
    clean = torch.empty((), dtype=torch.float64, device=device)
    wide = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
    gradients = [torch.empty_like(x, dtype=wide, memory_format=torch.contiguous_format) for x in weights]
    return clean, torch.empty(seeds.shape[0], 2, dtype=torch.float64, device=device), gradients


def _recurrent_activity(
    weights: Sequence[Tensor],
    cell: str,
    tokens: Tensor,
    targets: Tensor,
    seeds: Tensor,
    sigma: float,
    states: Sequence[Tensor],
    credit_length: int,
    local_gradient: bool,
    first_sequence: int,
    residual: bool = False,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    checked = check_weights(weights, cell, [-1] * len(weights), residual)
    if len(weights) != 6:
        raise ValueError("activity perturbation is for a single layer without layer norm: use ZeroOrder or BPTT")
    (vocab_size, _), device = checked.embedding.shape, checked.bias.device
    check_tokens(tokens, vocab_size)
    check_targets(tokens, targets, vocab_size)
    check_seeds(seeds)
    check_scalar(sigma, "sigma", checked.bias.dtype)
    if not sigma > 0:
        raise ValueError(f"sigma must be positive, not {sigma}")
    if credit_length < 1:
        raise ValueError(f"credit_length must be at least 1, not {credit_length}")
    if not 0 <= first_sequence <= 2**32 - len(tokens):
        raise ValueError(f"sequences must have numbers in [0, 2^32), but {len(tokens)} begin at {first_sequence}")
    if states:
        check_states(checked, states, (), len(tokens))
    problem = ActivityProblem(
        checked,
        tokens.to(device, torch.int64).contiguous(),
        targets.to(device).contiguous(),
        states,
        seeds.contiguous().numpy(),
        sigma,
        credit_length,
        local_gradient,
        first_sequence,
    )
    found = backend_for(device.type).recurrent_activity(problem)
    return found.clean, found.nats.contiguous(), [gradient.contiguous() for gradient in found.gradients]


_recurrent_activity_op = register(
    "recurrent_activity(Tensor[] weights, str cell, Tensor tokens, Tensor targets, Tensor seeds, float sigma, "
    "Tensor[] states, SymInt credit_length, bool local_gradient, SymInt first_sequence, bool residual=False) -> "
    "(Tensor, Tensor, Tensor[])",
    _recurrent_activity,
    _recurrent_activity_fake,
)
