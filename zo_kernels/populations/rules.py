"""Functions of torch that take many members badly under torch.vmap, with rules of their own.

On a CPU, vmap calls attention once for each member. For an embedding it copies the tables of all members.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Dim = int | None
"""The dimension of a tensor that counts the members; None if it is the same for all."""


def embedding(indices: Tensor, weight: Tensor, *more: Any, **options: Any) -> Tensor:
    """As torch.nn.functional.embedding. padding_idx and the like concern gradients."""
    if more[1:2] not in ((), (None,)) or options.get("max_norm") is not None or indices.dtype not in _INDICES:
        return F.embedding(indices, weight, *more, **options)
    return _apply(_Embedding, indices, weight)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """As torch's scaled_dot_product_attention."""
    tensors = [x for x in (query, key, value, attn_mask) if x is not None]
    options["is_causal"] = is_causal
    if dropout_p or any(x.dim() != 4 for x in tensors):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **options)
    return _apply(_Attention, query, key, value, attn_mask, options)


RULES: dict[Callable[..., Any], Callable[..., Tensor]] = {
    F.embedding: embedding,
    F.scaled_dot_product_attention: attention,
}
"""What takes the place of a function of torch."""

_INDICES = (torch.int64, torch.int32)


class _Rule(torch.autograd.Function):
    """Base class. Nothing is kept for autograd."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass


class _Embedding(_Rule):
    @staticmethod
    def forward(indices: Tensor, weight: Tensor) -> Tensor:
        return F.embedding(indices, weight)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Dim], indices: Tensor, weight: Tensor) -> tuple[Tensor, int]:
        if in_dims[1] is None:
            return F.embedding(_members_first(indices, in_dims[0], info.batch_size), weight), 0
        tables = _members_first(weight, in_dims[1], info.batch_size)
        first_rows = torch.arange(len(tables), device=indices.device) * tables.shape[1]
        indices = _members_first(indices, in_dims[0], info.batch_size)
        return F.embedding(indices + first_rows.view(-1, *[1] * (indices.dim() - 1)), tables.flatten(0, 1)), 0


class _Attention(_Rule):
    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, mask, **options)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Sequence[Dim],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: dict[str, Any],
    ) -> tuple[Tensor, int]:
        """Members are further sequences."""
        members = info.batch_size
        q, k, v = (
            _members_first(x, dim, members).flatten(0, 1) for x, dim in zip((query, key, value), in_dims, strict=False)
        )
        if mask is not None and (in_dims[3] is not None or len(mask) > 1):
            mask = _members_first(mask, in_dims[3], members)
            mask = mask.expand(members, len(q) // members, *mask.shape[2:]).flatten(0, 1)
        attended = F.scaled_dot_product_attention(q, k, v, mask, **options)
        return attended.unflatten(0, (members, -1)), 0


def _apply(rule: type[_Rule], *arguments: Any) -> Tensor:
    result: Tensor = rule.apply(*arguments)
    return result


def _members_first(x: Tensor, dim: Dim, members: int) -> Tensor:
    return x.expand(members, *x.shape) if dim is None else x.movedim(dim, 0)
