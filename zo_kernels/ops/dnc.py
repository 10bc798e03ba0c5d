"""The forward passes of language models with an external memory as ops: at many probes at once, and at theta."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..backends import backend_for
from ..backends.dnc.weights import DncWeights, sizes_of
from .checks import check_offset, check_scalar, check_seeds, check_targets, check_tensor, check_tokens
from .library import register


@torch.no_grad()
def dnc_nats(
    weights: DncWeights, tokens: Tensor, targets: Tensor, seeds: Tensor, eps: float, states: Sequence[Tensor] = ()
) -> Tensor:
    """Returns cross-entropy sums in nats at theta + eps * p(seeds[i]) and theta - eps * p(seeds[i]): float64 [n, 2].

    theta is not written, and no perturbed copy of it is made. Arithmetic is float32 (float64 for float64 weights), and
    sums over positions are float64. Backends and instruction sets agree up to the rounding of this arithmetic. On a
    GPU this op is the slow reference; the models compute there in another way.

    Args:
        weights: theta; see `zo_kernels.models.DNC` and `PaperDNC` for the shapes.
        tokens: int64 or int32 [B, T], values in [0, V).
        targets: int64 [B, T], values in [0, V), or -100 for a position that is not scored.
        seeds: int64 [n], a CPU tensor.
        eps: finite; rounded to the weights' dtype (float32 for 16-bit weights).
        states: empty, to start from zeros and the memory of `weights`, or the model's states before the first token,
            each [n, 2, B, ...] of dtype float32 (float64 for float64 weights). They are overwritten with the states
            after the last token.

    Raises:
        ValueError, TypeError: the arguments do not fit. The states have not been written then.
    """
    model, _, memory, offsets, tensors = weights
    return _dnc_nats_op(list(tensors), model, list(offsets), memory, tokens, targets, seeds, float(eps), list(states))


@torch.no_grad()
def dnc_score(weights: DncWeights, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy in nats at theta, summed over the scored positions, and how many targets are right.

    A target is right if its logit is the largest; of equal ones the first counts. Returns a float64 and an int64 scalar
    on the CPU. The arithmetic is that of `dnc_nats`.

    tokens, targets: as for `dnc_nats`. states: the model's states before the first token, each [B, ...] of float32
    (float64 for float64 weights). They are overwritten with the states after the last token. Raises as `dnc_nats` does.
    """
    model, _, memory, _, tensors = weights
    nats, correct = _dnc_score_op(list(tensors), model, memory, tokens, targets, list(states))
    return nats, correct


def _check_weights(tensors: Sequence[Tensor], model: str, offsets: Sequence[int], memory: Tensor) -> DncWeights:
    """The op's arguments as weights, once all of them fit each other."""
    sizes = sizes_of(model, tensors, memory)
    if len(offsets) != len(tensors):
        raise ValueError(f"there are {len(tensors)} weights, but {len(offsets)} offsets")
    dtype, device = tensors[-1].dtype, tensors[-1].device
    for name, x, offset in zip(sizes.weights(model), tensors, offsets, strict=True):
        if x.dtype != dtype or x.device != device:
            raise ValueError(f"{name} is {x.dtype} on {x.device}, but output_bias {dtype} on {device}")
        check_tensor(x, name)
        if offset != -1:
            check_offset(offset, x.numel())
    _check_wide(memory, "memory", list(memory.shape), tensors[-1])
    return DncWeights(model, sizes, memory, tuple(offsets), tuple(tensors))


def _check_wide(x: Tensor, name: str, shape: list[int], bias: Tensor) -> None:
    """Checks dtype, shape, device and layout of a state or of the memory."""
    wide = torch.float64 if bias.dtype == torch.float64 else torch.float32
    if list(x.shape) != shape or x.dtype != wide or x.device != bias.device:
        raise ValueError(
            f"{name} must be {wide} of shape {shape} on {bias.device}, "
            f"not {x.dtype} of shape {list(x.shape)} on {x.device}"
        )
    check_tensor(x, name)


def _check_states(weights: DncWeights, states: Sequence[Tensor], leading: tuple[int, ...]) -> None:
    shapes = weights.sizes.states(weights.model)
    if len(states) != len(shapes):
        raise ValueError(f"the model {weights.model} has {len(shapes)} states, but {len(states)} were given")
    for (name, shape), state in zip(shapes.items(), states, strict=True):
        _check_wide(state, f"state {name}", [*leading, *shape], weights.output_bias)
    ends = sorted((state.data_ptr(), state.data_ptr() + state.numel() * state.element_size()) for state in states)
    if any(end > start for (_, end), (start, _) in pairwise(ends)):
        raise ValueError("states overlap in memory: give each memory of its own")


def _check_meta(weights: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Refuses meta tensors among real ones: where one tensor has no values there is nothing to compute."""
    for x in others:
        if x.is_meta != weights[0].is_meta:
            raise ValueError(f"a tensor is on {x.device}, but the weights on {weights[0].device}")


def _dnc_nats_fake(
    weights: Sequence[Tensor],
    model: str,
    offsets: Sequence[int],
    memory: Tensor,
    tokens: Tensor,
    targets: Tensor,
    seeds: Tensor,
    eps: float,
    states: Sequence[Tensor],
) -> Tensor:
    _check_meta(weights, [memory, tokens, targets, seeds, *states])
    return torch.empty(seeds.shape[0], 2, dtype=torch.float64, device=seeds.device)


def _dnc_nats(
    weights: Sequence[Tensor],
    model: str,
    offsets: Sequence[int],
    memory: Tensor,
    tokens: Tensor,
    targets: Tensor,
    seeds: Tensor,
    eps: float,
    states: Sequence[Tensor],
) -> Tensor:
    checked = _check_weights(weights, model, offsets, memory)
    device, vocab_size = memory.device, checked.sizes.vocab
    check_tokens(tokens, vocab_size)
    check_targets(tokens, targets, vocab_size)
    check_seeds(seeds)
    check_scalar(eps, "eps", checked.output_bias.dtype)
    if states:
        _check_states(checked, states, (len(seeds), 2, len(tokens)))
    tokens, targets = tokens.to(device, torch.int64).contiguous(), targets.to(device).contiguous()
    nats = backend_for(device.type).dnc_nats(checked, tokens, targets, seeds.contiguous().numpy(), eps, states)
    increment_version(states)
    return nats


def _dnc_score_fake(
    weights: Sequence[Tensor], model: str, memory: Tensor, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    _check_meta(weights, [memory, tokens, targets, *states])
    device = "meta" if weights[0].is_meta else "cpu"
    return torch.empty((), dtype=torch.float64, device=device), torch.empty((), dtype=torch.int64, device=device)


def _dnc_score(
    weights: Sequence[Tensor], model: str, memory: Tensor, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    checked = _check_weights(weights, model, [-1] * len(weights), memory)
    device, vocab_size = memory.device, checked.sizes.vocab
    check_tokens(tokens, vocab_size)
    check_targets(tokens, targets, vocab_size)
    _check_states(checked, states, (len(tokens),))
    tokens, targets = tokens.to(device, torch.int64).contiguous(), targets.to(device).contiguous()
    nats, correct = backend_for(device.type).dnc_score(checked, tokens, targets, states)
    increment_version(states)
    return nats, correct


_dnc_nats_op = register(
    "dnc_nats(Tensor[] weights, str model, SymInt[] offsets, Tensor memory, Tensor tokens, Tensor targets, "
    "Tensor seeds, float eps, Tensor(a!)[] states) -> Tensor",
    _dnc_nats,
    _dnc_nats_fake,
)
_dnc_score_op = register(
    "dnc_score(Tensor[] weights, str model, Tensor memory, Tensor tokens, Tensor targets, Tensor(a!)[] states) -> "
    "(Tensor, Tensor)",
    _dnc_score,
    _dnc_score_fake,
)
