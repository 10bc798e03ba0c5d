"""The resident forward of csrc/cuda/resident.cu: LSTMs in bfloat16 products, whose weights stay in a thread block.

Not yet verified on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import cpu
from ..base import RecurrentWeights
from .memory import free_bytes

MOST_UNITS = 64
"""Of a head: what a thread block has registers for."""

_SCRATCH, _SHARE = 384 << 20, 0.8
"""Bytes of the tables, output weights and hidden states of one call, and their largest share of the free memory."""

_FEW_STEPS = 16
"""A call has as many probes as there is memory for with the hidden states of so many steps.

Each part of the context makes the recurrent weights again.
"""

_ALL_TOKENS = 1024
"""Up to so many, all tokens get a row in the token table. To find those of a batch takes longer."""

_MOST_PROBES = 65535
"""Of one call: what gridDim.z holds."""


def refusal(weights: RecurrentWeights, batch_size: int, device: torch.device) -> str | None:
    """Returns why the forward can't compute these weights with such a batch on this device, or None if it can.

    It is a sentence without a full stop. batch_size: sequences of a batch. device: a GPU; its shared memory bounds the
    size of embeddings.
    """
    if weights.cell != "lstm" or weights.bias.dtype == torch.float64:
        return f"it computes LSTMs of up to 32 bits, not {weights.cell} of {weights.bias.dtype}"
    if weights.num_layers > 1 or weights.norm_weight is not None:
        return "it computes a single layer without layer norm"
    if (units := weights.bias.shape[2]) > MOST_UNITS:
        return f"it computes heads of up to {MOST_UNITS} units, not {units}"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or higher"
    most = cpu._C.cuda_resident_embed_dim(device.index or 0)
    if (embed_dim := weights.embedding.shape[1]) > most:
        return f"it computes embeddings of up to {most} numbers on this GPU, not {embed_dim}"
    if 2 * weights.output_weight.shape[1] * batch_size >= 2**31:
        return f"it computes fewer sequences at a time than {batch_size}"
    return None


def chunks(probes: int, steps: int, probe_bytes: int, step_bytes: int, budget: int) -> tuple[int, int]:
    """Returns how many probes one call evaluates, and of how many time steps it keeps the hidden states.

    probe_bytes, step_bytes: of one probe, and of a time step of one. Both results are at least 1, even if that takes
    more than the budget. Calls are of about equal size, the last may be smaller.
    """
    few = min(steps, _FEW_STEPS)
    most = min(max(1, budget // (probe_bytes + few * step_bytes)), probes, _MOST_PROBES)
    at_once = -(-probes // -(-probes // most))
    return at_once, min(max(1, (budget // at_once - probe_bytes) // step_bytes), steps)


def recurrent_nats(
    weights: RecurrentWeights,
    tokens: Tensor,
    targets: Tensor,
    seeds: npt.NDArray[np.int64],
    eps: float,
    states: Sequence[Tensor],
    queue: tuple[int, int],
) -> Tensor:
    """See `Backend.recurrent_nats` with precision "bfloat16".

    queue: device and cudaStream_t. Raises RuntimeError where `refusal` has a reason.
    """
    device, (batch_size, num_steps) = tokens.device, tokens.shape
    reason = refusal(weights, batch_size, device)
    if reason is not None:
        raise RuntimeError(f"the resident forward can't compute this: {reason}")
    if len(seeds) == 0:
        return torch.zeros(0, 2, dtype=torch.float64)
    parameters = [x.detach().float().contiguous() for x in weights.tensors]
    (vocab_size, embed_dim), (_, num_heads, head_dim) = weights.embedding.shape, weights.bias.shape
    if vocab_size <= _ALL_TOKENS:
        rows, index_BT = torch.arange(vocab_size, device=device), tokens
    else:
        rows, index_BT = tokens.unique(return_inverse=True)
    index_TB, targets_TB = (x.t().to(torch.int32).contiguous() for x in (index_BT, targets))
    sizes = [vocab_size, embed_dim, num_heads, head_dim, len(rows)]
    state_shape = (2, num_heads, batch_size, head_dim)
    probe_bytes, step_bytes = cpu._C.cuda_resident_bytes(sizes, batch_size)
    state_bytes = 0 if states or num_steps <= _FEW_STEPS else 2 * 4 * math.prod(state_shape)
    budget = min(_SCRATCH, int(_SHARE * free_bytes(device)))
    at_once, steps_at_once = chunks(len(seeds), num_steps, probe_bytes + state_bytes, step_bytes, budget)
    scratch = torch.empty(at_once * (probe_bytes + steps_at_once * step_bytes), dtype=torch.uint8, device=device)
    all_seeds = torch.from_numpy(seeds).to(device)
    num_parts = cpu._C.cuda_resident_parts(batch_size, num_steps, steps_at_once)
    parts = torch.empty(len(seeds), 2, num_parts, dtype=torch.float64, device=device)
    for first in range(0, len(seeds), at_once):
        part, carried = all_seeds[first : first + at_once], [state[first : first + at_once] for state in states]
        if not carried and steps_at_once < num_steps:
            carried = [torch.zeros(len(part), *state_shape, device=device) for _ in range(2)]
        h, c = (state.data_ptr() for state in carried) if carried else (0, 0)
        cpu._C.cuda_resident(
            [(x.data_ptr(), offset) for x, offset in zip(parameters, weights.offsets, strict=True)],
            sizes,
            rows.data_ptr(),
            index_TB.data_ptr(),
            targets_TB.data_ptr(),
            batch_size,
            num_steps,
            steps_at_once,
            part.data_ptr(),
            len(part),
            eps,
            h,
            c,
            scratch.data_ptr(),
            parts[first : first + at_once].data_ptr(),
            *queue,
        )
    return parts.sum(dim=2).cpu()
