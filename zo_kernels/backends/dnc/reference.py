"""The forwards of the models with a memory in plain torch and float64, one member at a time: true, and slow.

`zo_kernels.models` has the equations. Shape suffixes: B batch, E embedding, N slots, W width, R read heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from ...philox import probe_bits
from .weights import DncWeights

Member = Mapping[str, Tensor]
"""Parameters of one member by name, in float64."""


def member_of(weights: DncWeights, alpha: float, seed: int) -> Member:
    """Returns theta + alpha * p(seed) in float64, rounded to float32 on the way unless theta is float64."""
    compute = torch.float64 if weights.output_bias.dtype == torch.float64 else torch.float32
    member = {}
    names = weights.sizes.weights(weights.model)
    for name, x, offset in zip(names, weights.tensors, weights.offsets, strict=True):
        x = x.detach().to(compute)
        if offset >= 0:
            bits = torch.from_numpy(probe_bits(x.numel(), seed, offset)).to(x.device, compute).view(x.shape)
            x = x + torch.tensor(alpha, dtype=compute, device=x.device) * (2 * bits - 1)
        member[name] = x.double()
    return member


def start(weights: DncWeights, batch_size: int) -> list[Tensor]:
    """Returns the states before the first token, each float64 [B, ...]."""
    shapes = weights.sizes.states(weights.model)
    states = {name: weights.memory.new_zeros(batch_size, *shape).double() for name, shape in shapes.items()}
    states["memory"] += weights.memory
    return list(states.values())


def step(weights: DncWeights, w: Member, tokens_B: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Returns the logits [B, V] after one more token, and the states."""
    one = _paper_step if weights.model == "paper-dnc" else _dnc_step
    output, states = one(w, w["embedding"][tokens_B], states, weights.sizes.heads)
    return F.linear(output, w["output_weight"], w["output_bias"]), states


def _lstm(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, z, o = gates.chunk(4, dim=-1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
    return torch.sigmoid(o) * torch.tanh(c), c


def _write(memory_BNW: Tensor, written_BN: Tensor, erase_BW: Tensor, write_BW: Tensor) -> Tensor:
    erased = memory_BNW * (1 - torch.einsum("bn,bw->bnw", written_BN, erase_BW))
    return erased + torch.einsum("bn,bw->bnw", written_BN, write_BW)


def _norm(x: Tensor, w: Member, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}_norm_weight"], w[f"{name}_norm_bias"])


def _paper_step(w: Member, e_BE: Tensor, states: Sequence[Tensor], heads: int) -> tuple[Tensor, list[Tensor]]:
    h, c, memory, vectors = states
    inputs = torch.cat((_norm(torch.cat((e_BE, vectors.flatten(1)), dim=-1), w, "input"), h), dim=-1)
    h, c = _lstm(F.linear(inputs, w["controller_weight"], w["input_bias"] + w["recurrent_bias"]), c)
    hidden, width = _norm(h, w, "hidden"), memory.shape[-1]
    interface = F.linear(hidden, w["interface_weight"], w["interface_bias"])
    read_keys, write_key, strength, erase, write = interface.split([heads * width, width, 1, width, width], dim=-1)

    scores_BN = torch.einsum("bnw,bw->bn", _norm(memory, w, "memory"), _norm(write_key, w, "write_key"))
    written = torch.sigmoid(strength) * torch.softmax(scores_BN, dim=-1)
    memory = _write(memory, written, torch.sigmoid(erase), torch.tanh(write))
    keys_BRW = _norm(read_keys.unflatten(-1, (heads, width)), w, "read_key")
    scores_BRN = torch.einsum("bnw,brw->brn", _norm(memory, w, "memory"), keys_BRW)
    vectors = torch.softmax(scores_BRN, dim=-1) @ memory
    return _norm(torch.cat((hidden, vectors.flatten(1)), dim=-1), w, "output"), [h, c, memory, vectors]


def _content(keys_BKW: Tensor, strengths_BK: Tensor, memory_BNW: Tensor) -> Tensor:
    lengths = keys_BKW.norm(dim=-1)[:, :, None] * memory_BNW.norm(dim=-1)[:, None]
    cosines = torch.einsum("bkw,bnw->bkn", keys_BKW, memory_BNW) / (lengths + 1e-6)
    return torch.softmax((1 + F.softplus(strengths_BK))[:, :, None] * cosines, dim=-1)


def _allocation(usage_BN: Tensor) -> Tensor:
    ascending, order = usage_BN.sort(dim=-1, stable=True)
    before = torch.cat((torch.ones_like(ascending[:, :1]), ascending[:, :-1]), dim=-1).cumprod(dim=-1)
    return torch.zeros_like(usage_BN).scatter(-1, order, (1 - ascending) * before)


def _dnc_step(w: Member, e_BE: Tensor, states: Sequence[Tensor], heads: int) -> tuple[Tensor, list[Tensor]]:
    h, c, memory, usage, precedence, link, written, read, vectors = states
    inputs = torch.cat((e_BE, vectors.flatten(1), h), dim=-1)
    h, c = _lstm(F.linear(inputs, w["controller_weight"], w["controller_bias"]), c)
    interface, width = F.linear(h, w["interface_weight"], w["interface_bias"]), memory.shape[-1]
    sizes = [heads * width, heads, width, 1, width, width, heads, 1, 1, 3 * heads]
    keys, strengths, write_key, write_strength, erase, write, free, *gates, modes = interface.split(sizes, dim=-1)
    allocation_gate, write_gate = (torch.sigmoid(gate) for gate in gates)

    retention = (1 - torch.sigmoid(free)[:, :, None] * read).prod(dim=1)
    usage = (usage + written - usage * written) * retention
    content = _content(write_key[:, None], write_strength, memory)[:, 0]
    written = write_gate * (allocation_gate * _allocation(usage) + (1 - allocation_gate) * content)
    memory = _write(memory, written, torch.sigmoid(erase), write)
    link = (1 - written[:, :, None] - written[:, None]) * link + written[:, :, None] * precedence[:, None]
    link = link * (1 - torch.eye(link.shape[-1], dtype=link.dtype, device=link.device))
    precedence = (1 - written.sum(dim=-1, keepdim=True)) * precedence + written

    content = _content(keys.unflatten(-1, (heads, width)), strengths, memory)
    backward, forward = read @ link, read @ link.transpose(1, 2)
    modes = torch.softmax(modes.unflatten(-1, (heads, 3)), dim=-1)
    read = modes[..., 0:1] * backward + modes[..., 1:2] * content + modes[..., 2:3] * forward
    vectors = read @ memory
    output = torch.cat((h, vectors.flatten(1)), dim=-1)
    return output, [h, c, memory, usage, precedence, link, written, read, vectors]


def _run(
    weights: DncWeights, w: Member, tokens: Tensor, targets: Tensor, states: list[Tensor]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Nats, the number of targets with the largest logit, and the states after the last token."""
    nats, correct = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.int64)
    for t in range(tokens.shape[1]):
        logits, states = step(weights, w, tokens[:, t], states)
        nats += F.cross_entropy(logits, targets[:, t], reduction="sum").cpu()
        correct += (logits.argmax(dim=-1) == targets[:, t]).sum().cpu()  # no target is -100 by chance
    return nats, correct, states


def dnc_nats(
    weights: DncWeights,
    tokens: Tensor,
    targets: Tensor,
    seeds: npt.NDArray[np.int64],
    eps: float,
    states: Sequence[Tensor],
) -> Tensor:
    """See `Backend.dnc_nats`."""
    nats = torch.zeros(len(seeds), 2, dtype=torch.float64)
    for i, seed in enumerate(seeds.tolist()):
        for s, alpha in enumerate((eps, -eps)):
            before = [state[i, s].double() for state in states] or start(weights, len(tokens))
            nats[i, s], _, after = _run(weights, member_of(weights, alpha, seed), tokens, targets, before)
            for state, last in zip(states, after, strict=False):
                state[i, s] = last
    return nats


def dnc_score(weights: DncWeights, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """See `Backend.dnc_score`."""
    member = member_of(weights, 0.0, 0)
    nats, correct, after = _run(weights, member, tokens, targets, [state.double() for state in states])
    for state, last in zip(states, after, strict=True):
        state.copy_(last)
    return nats, correct
