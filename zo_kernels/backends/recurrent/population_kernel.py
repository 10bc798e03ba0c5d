"""The population kernel of csrc/cuda/population.cu: LSTMs in bfloat16 products, all time steps in one launch.

Not yet verified on a GPU, and so off unless the environment variable ZO_KERNELS_POPULATION_KERNEL is 1.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import cpu
from ..base import RecurrentWeights

VARIABLE = "ZO_KERNELS_POPULATION_KERNEL"

_TABLE_BUDGET = 1 << 30
"""Bytes of the token tables of the probes of one call."""

_MOST_PROBES = 65535
"""Of one call: what gridDim.z holds."""

_logger = logging.getLogger("zo_kernels")


@functools.cache
def _warn_once() -> None:
    _logger.warning("%s=1: the population kernel is not yet verified on a GPU", VARIABLE)


def turned_on() -> bool:
    return os.environ.get(VARIABLE) == "1"


def recurrent_nats(
    weights: RecurrentWeights,
    tokens: Tensor,
    targets: Tensor,
    seeds: npt.NDArray[np.int64],
    eps: float,
    states: Sequence[Tensor],
    queue: tuple[int, int],
) -> Tensor:
    """See `Backend.recurrent_nats`. Recurrent and output weights and hidden states are rounded to bfloat16.

    queue: device and cudaStream_t. Raises RuntimeError for a cell other than the LSTM, for float64 weights, and for
    several layers or a layer norm, and ValueError where the model does not fit the kernel: head sizes must be even, and
    the weights and the states of 16 sequences must fit shared memory.
    """
    if weights.cell != "lstm" or weights.bias.dtype == torch.float64:
        raise RuntimeError(
            f"the population kernel computes LSTMs of up to 32 bits, not {weights.cell} of {weights.bias.dtype}: "
            "use precision='float32'"
        )
    if weights.num_layers > 1 or weights.norm_weight is not None:
        raise RuntimeError("the population kernel computes a single layer without layer norm: use precision='float32'")
    _warn_once()
    device = tokens.device
    parameters = [x.detach().float().contiguous() for x in weights.tensors]
    (vocab_size, embed_dim), (_, num_heads, head_dim) = weights.embedding.shape, weights.bias.shape
    sizes = [vocab_size, embed_dim, num_heads, head_dim]
    batch_size, num_steps = tokens.shape
    tiles = cpu._C.cuda_population_tiles(sizes, batch_size, queue[0])
    per_probe = 2 * vocab_size * num_heads * head_dim * 4
    chunk = max(1, min(len(seeds), _TABLE_BUDGET // (4 * per_probe), _MOST_PROBES))
    table = torch.empty(chunk * per_probe, dtype=torch.float32, device=device)
    all_seeds = torch.from_numpy(seeds).to(device)
    parts = torch.empty(len(seeds), 2, tiles, dtype=torch.float64, device=device)
    for first in range(0, len(seeds), chunk):
        part, carried = all_seeds[first : first + chunk], [state[first : first + chunk] for state in states]
        h, c = (state.data_ptr() for state in carried) if carried else (0, 0)
        cpu._C.cuda_population(
            [(x.data_ptr(), offset) for x, offset in zip(parameters, weights.offsets, strict=True)],
            sizes,
            tokens.data_ptr(),
            targets.data_ptr(),
            batch_size,
            num_steps,
            part.data_ptr(),
            len(part),
            eps,
            h,
            c,
            table.data_ptr(),
            parts[first : first + chunk].data_ptr(),
            *queue,
        )
    return parts.sum(dim=2).cpu()
