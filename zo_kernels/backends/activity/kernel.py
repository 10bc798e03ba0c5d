"""Activity perturbation by the CPU kernel (csrc/cpu/activity), for float32 and without the local gradient.

The token table and the gradients of the weights behind it are small products, made in torch.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from ..base import CELLS
from .problem import ActivityGradient, ActivityProblem

_COLUMNS = 16
"""What the columns of a head are padded to a multiple of, for vectors of any instruction set."""


def has_kernel(problem: ActivityProblem) -> bool:
    """Whether the kernel computes what is asked for."""
    return problem.dtype == torch.float32 and not problem.local_gradient


@torch.no_grad()
def activity(compiled: ModuleType, problem: ActivityProblem) -> ActivityGradient:
    """See `Backend.recurrent_activity`. compiled: zo_kernels._C."""
    weights, probes = problem.weights, len(problem.seeds)
    tensors = [x.detach().float() for x in weights.tensors]
    embedding, input_weight, recurrent, bias, output_weight, output_bias = tensors
    (rows, heads, dim), (batch, steps) = bias.shape, problem.tokens.shape
    first_input = rows - CELLS[weights.cell].input_rows
    distinct, index_BT = problem.tokens.unique(return_inverse=True)
    inputs_VIND = torch.einsum("ve,inde->vind", embedding[distinct], input_weight)
    table_VGND = bias + F.pad(inputs_VIND, (0, 0, 0, 0, first_input, 0))
    columns = -(-dim * rows // _COLUMNS) * _COLUMNS
    table_VNC = F.pad(table_VGND.permute(0, 2, 3, 1).flatten(2), (0, columns - dim * rows)).contiguous()
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
        nats.data_ptr(),
        [x.data_ptr() for x in found],
    )
    of_rows_VGND = found[0][..., : dim * rows].unflatten(2, (dim, rows)).permute(0, 3, 1, 2)
    of_inputs_VIND = of_rows_VGND[:, first_input:]
    of_embedding: Tensor = torch.zeros_like(embedding)
    of_embedding[distinct] = torch.einsum("vind,inde->ve", of_inputs_VIND, input_weight)
    of_input = torch.einsum("vind,ve->inde", of_inputs_VIND, embedding[distinct])
    gradients = of_embedding, of_input, found[1], of_rows_VGND.sum(0), found[2], found[3]
    return ActivityGradient(nats[0], nats[1:].view(2, -1).t(), gradients)
