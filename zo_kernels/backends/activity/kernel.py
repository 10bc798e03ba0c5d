"""Activity perturbation by the CPU kernel (csrc/cpu/activity), for float32.

The token table and the gradients of the weights behind it are small products, of the kernel too: the sums of torch's
depend on the number of threads.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from ..base import CELLS
from .problem import ActivityGradient, ActivityProblem

_COLUMNS = 16
"""What columns are padded to a multiple of, for vectors of any instruction set."""


def has_kernel(problem: ActivityProblem) -> bool:
    """Whether the kernel computes what is asked for."""
    return problem.dtype == torch.float32


@torch.no_grad()
def activity(compiled: ModuleType, problem: ActivityProblem) -> ActivityGradient:
    """See `Backend.recurrent_activity`. compiled: zo_kernels._C."""
    weights, probes = problem.weights, len(problem.seeds) if problem.is_perturbed else 0
    tensors = [x.detach().float() for x in weights.tensors]
    embedding, input_weight, recurrent, bias, output_weight, output_bias = tensors
    (rows, heads, dim), (batch, steps) = bias.shape, problem.tokens.shape
    first_input = rows - CELLS[weights.cell].input_rows
    distinct, index_BT = problem.tokens.unique(return_inverse=True)
    columns, size = _padded(dim * rows), embedding.shape[1]
    # Inputs have a last element of 1, whose weights are the biases.
    inputs_VE = embedding.new_zeros(len(distinct), _padded(size + 1))
    inputs_VE[:, :size], inputs_VE[:, size] = embedding[distinct], 1.0
    weights_NCE = embedding.new_zeros(heads, columns, inputs_VE.shape[1])
    of_units_NDGE = weights_NCE[:, : dim * rows].unflatten(1, (dim, rows))
    of_units_NDGE[:, :, first_input:, :size] = input_weight.permute(1, 2, 0, 3)
    of_units_NDGE[..., size] = bias.permute(1, 2, 0)
    weights_CE = weights_NCE.flatten(0, 1)
    table_VNC = _multiply(compiled, inputs_VE, weights_CE.t().contiguous()).unflatten(1, (heads, columns))
    index_TB, targets_TB = (x.t().to(torch.int32).contiguous() for x in (index_BT, problem.targets))
    states = [state.float().contiguous() for state in problem.states]
    nats = torch.empty(1 + 2 * probes, dtype=torch.float64)
    found = [torch.empty_like(x) for x in (table_VNC, recurrent, output_weight, output_bias)]
    compiled.perturb_activities(
        list(CELLS).index(weights.cell),
        [len(output_bias), heads, dim, len(distinct), columns],
        table_VNC.data_ptr(),
        index_TB.data_ptr(),
        recurrent.data_ptr(),
        output_weight.data_ptr(),
        output_bias.data_ptr(),
        targets_TB.data_ptr(),
        batch,
        steps,
        states[0].data_ptr() if states else 0,
        states[1].data_ptr() if len(states) > 1 else 0,
        problem.seeds.ctypes.data if probes else 0,
        probes,
        problem.first_sequence,
        problem.sigma,
        problem.credit_length,
        problem.local_gradient,
        nats.data_ptr(),
        [x.data_ptr() for x in found],
    )
    of_table_VC = found[0].flatten(1)
    of_embedding = torch.zeros_like(embedding)
    of_embedding[distinct] = _multiply(compiled, of_table_VC, weights_CE)[:, :size]
    of_weights_NCE = _multiply(compiled, of_table_VC.t(), inputs_VE).unflatten(0, (heads, columns))
    of_units_GNDE = of_weights_NCE[:, : dim * rows].unflatten(1, (dim, rows)).permute(2, 0, 1, 3)
    of_input, of_bias = of_units_GNDE[first_input:, ..., :size].contiguous(), of_units_GNDE[..., size].contiguous()
    gradients = of_embedding, of_input, found[1], of_bias, found[2], found[3]
    of_probes = nats[1:].view(2, -1).t() if probes else nats.new_zeros(len(problem.seeds), 2)
    return ActivityGradient(nats[0], of_probes, gradients)


def _padded(columns: int) -> int:
    return -(-columns // _COLUMNS) * _COLUMNS


def _multiply(compiled: ModuleType, a: Tensor, b: Tensor) -> Tensor:
    """Returns a b, with the same bits on any number of threads: [m, k] of any strides times contiguous [k, n]."""
    c = a.new_empty(len(a), b.shape[1])
    compiled.multiply([*a.shape, b.shape[1]], a.data_ptr(), a.stride(), b.data_ptr(), c.data_ptr())
    return c
