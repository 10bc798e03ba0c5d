"""Memory addressing of a DNC, by the equations of Graves et al., Nature 538 (2016), Methods, "Memory addressing".

Weightings are over the N slots, in the last dimension. Shape suffixes: M members, B batch, N slots, W width, R read
heads. The functions do not modify their arguments. They are differentiable, except for the sorting, as in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_EPSILON = 1e-6
"""Added to the product of norms in the cosine, since the norm of an empty slot is 0."""


def oneplus(x: Tensor) -> Tensor:
    """1 + log(1 + e^x), which maps to strengths in [1, inf)."""
    return 1 + F.softplus(x)


def norms(memory_MBNW: Tensor) -> Tensor:
    """The Euclidean norm of each slot [M, B, N]."""
    return torch.linalg.vector_norm(memory_MBNW, dim=-1)


def content_weights(keys_MBKW: Tensor, strengths_MBK: Tensor, memory_MBNW: Tensor, norms_MBN: Tensor) -> Tensor:
    """C(M, k, beta) for K keys, [M, B, K, N]: softmax over the slots of beta times the cosine of key and slot.

    norms_MBN: `norms` of the memory.
    """
    lengths = norms(keys_MBKW)[..., None] * norms_MBN[:, :, None] + _EPSILON
    cosines = (keys_MBKW @ memory_MBNW.transpose(2, 3)) / lengths
    return torch.softmax(strengths_MBK[..., None] * cosines, dim=-1)


def next_usage(usage_MBN: Tensor, written_MBN: Tensor, read_MBRN: Tensor, free_gates_MBR: Tensor) -> Tensor:
    """u = (u + w - u w) psi with the retention psi = prod_i (1 - f_i r_i); w and r_i are those of the last step."""
    retention = (1 - free_gates_MBR[..., None] * read_MBRN).prod(dim=2)
    return (usage_MBN + written_MBN - usage_MBN * written_MBN) * retention


def allocation_weights(usage_MBN: Tensor) -> Tensor:
    """a[phi_j] = (1 - u[phi_j]) prod_{i < j} u[phi_i]; phi sorts the slots from least to most used, ties by index."""
    order = usage_MBN.argsort(dim=-1, stable=True)
    ascending = usage_MBN.gather(-1, order)
    before = F.pad(ascending[..., :-1], (1, 0), value=1.0).cumprod(dim=-1)
    return torch.zeros_like(usage_MBN).scatter(-1, order, (1 - ascending) * before)


def write_weights(
    content_MBN: Tensor, allocation_MBN: Tensor, write_gate_MB1: Tensor, allocation_gate_MB1: Tensor
) -> Tensor:
    """w = g_w (g_a a + (1 - g_a) c)."""
    return write_gate_MB1 * torch.lerp(content_MBN, allocation_MBN, allocation_gate_MB1)


def next_memory(memory_MBNW: Tensor, written_MBN: Tensor, erase_MBW: Tensor, write_MBW: Tensor) -> Tensor:
    """M (1 - w e^T) + w v^T."""
    written_MBN1 = written_MBN[..., None]
    erased = torch.addcmul(memory_MBNW, written_MBN1 * erase_MBW[:, :, None], memory_MBNW, value=-1)
    return torch.addcmul(erased, written_MBN1, write_MBW[:, :, None])


def next_link(link_MBNN: Tensor, precedence_MBN: Tensor, written_MBN: Tensor) -> Tensor:
    """L[i, j] = (1 - w[i] - w[j]) L[i, j] + w[i] p[j], and 0 on the diagonal. p is the precedence before the write."""
    to_MBN1, from_MB1N = written_MBN[..., None], written_MBN[:, :, None]
    link = torch.addcmul((1 - to_MBN1 - from_MB1N) * link_MBNN, to_MBN1, precedence_MBN[:, :, None])
    return torch.diagonal_scatter(link, torch.zeros_like(written_MBN), dim1=-2, dim2=-1)


def next_precedence(precedence_MBN: Tensor, written_MBN: Tensor) -> Tensor:
    """p = (1 - sum_i w[i]) p + w."""
    return torch.addcmul(written_MBN, 1 - written_MBN.sum(dim=-1, keepdim=True), precedence_MBN)


def read_weights(link_MBNN: Tensor, read_MBRN: Tensor, content_MBRN: Tensor, modes_MBR3: Tensor) -> Tensor:
    """pi_1 L^T r + pi_2 c + pi_3 L r for each head (backward, content, forward); r is that of the last step."""
    backward, forward = read_MBRN @ link_MBNN, read_MBRN @ link_MBNN.transpose(2, 3)
    return (torch.stack((backward, content_MBRN, forward), dim=-1) * modes_MBR3[:, :, :, None]).sum(dim=-1)
