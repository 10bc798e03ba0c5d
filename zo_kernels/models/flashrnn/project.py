"""Computes the input projections of tokens and of the outputs of layers, in the layout of the recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backends.recurrent.loss import products
from .members import LayerMembers, Members

_ROWS = 32
"""In a product for one member: BLAS rounds a row by their number, and a text may be read in parts of any length."""


class InputProjection:
    """Computes Wx for the tokens of a batch and all members, in the members' dtype, and rounds it to `dtype` once.

    If the batch has more positions than the vocabulary has tokens, the projections of all tokens are computed once as a
    table and looked up. If `with_bias`, the biases of the input rows are added before rounding.
    """

    def __init__(self, members: Members, num_positions: int, dtype: torch.dtype, *, with_bias: bool) -> None:
        self._members, self._layer = members, members.layer(0)
        self._dtype = dtype
        self._bias_MK = self._layer.input_bias().flatten(1) if with_bias else None
        self._table_VMK = self._rows(members.embedding) if num_positions > members.embedding.shape[1] else None

    def __call__(self, tokens_TB: Tensor) -> Tensor:
        """The projections [T, B, MN, I, D] of tokens [T, B], contiguous."""
        tokens_X = tokens_TB.flatten()
        if self._table_VMK is not None:
            rows_XMK = self._table_VMK.index_select(0, tokens_X)
        else:
            rows_XMK = self._rows(self._members.embedding.index_select(1, tokens_X))
        heads, _, _, head_dim = self._layer.recurrent_weight.shape
        return rows_XMK.view(*tokens_TB.shape, heads, -1, head_dim)

    def _rows(self, embeddings_MYE: Tensor) -> Tensor:
        """Projections [Y, M, K] of embeddings [M, Y, E], with K = N * I * D, in the order the recurrence reads."""
        weight_MEK = self._layer.input_weight.flatten(1, -2).transpose(1, 2)
        members, count, _ = embeddings_MYE.shape
        if members == 1 and not torch.is_grad_enabled():
            rows_YMK = _in_equal_parts(embeddings_MYE[0], weight_MEK[0])[:, None]
        elif members == 1:  # without out=, which autograd does not support
            rows_YMK = torch.bmm(embeddings_MYE, weight_MEK).transpose(0, 1)
        else:
            rows_YMK = embeddings_MYE.new_empty(count, members, weight_MEK.shape[2])
            torch.bmm(embeddings_MYE, weight_MEK, out=rows_YMK.transpose(0, 1))
        if self._bias_MK is not None:
            rows_YMK = rows_YMK + self._bias_MK
        return rows_YMK.to(self._dtype)


def project_outputs(layer: LayerMembers, outputs_TBMH: Tensor, *, with_bias: bool) -> Tensor:
    """The projections [T, B, MN, I, D] of the outputs of the layer before, contiguous and in their dtype.

    If with_bias, the biases of the input rows are added before rounding.
    """
    rows_MXH = outputs_TBMH.flatten(0, 1).transpose(0, 1)
    weight_MHK = layer.input_weight.flatten(1, -2).transpose(1, 2)
    rows_MXK = products(rows_MXH, weight_MHK)
    if with_bias:
        rows_MXK = rows_MXK + layer.input_bias().flatten(1)[:, None]
    rows_XMK = rows_MXK.to(outputs_TBMH.dtype).transpose(0, 1).contiguous()
    heads, _, _, head_dim = layer.recurrent_weight.shape
    return rows_XMK.view(*outputs_TBMH.shape[:2], heads, -1, head_dim)


def _in_equal_parts(x_YE: Tensor, weight_EK: Tensor) -> Tensor:
    """The product [Y, K], in which the bits of a row do not depend on the other rows or on their number."""
    count = len(x_YE)
    padded = F.pad(x_YE, (0, 0, 0, -count % _ROWS))
    return torch.cat([part @ weight_EK for part in padded.split(_ROWS)])[:count]
