"""Makes the members of a population, the perturbed copies of the parameters, in the layout of heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import ops
from ...backends.base import NORM_EPS, RecurrentWeights

MULTIPLIED = ("recurrent_weight", "output_weight", "upper_input_weight", "upper_recurrent_weight")
"""Parameters that multiply hidden states or outputs of layers. They are bfloat16 if the hidden states are."""


class LayerMembers:
    """The parameters of one layer of M members: input_weight [M, N, I, D, K] for K inputs, recurrent_weight [MN, P, R,
    D], bias [MN, G, D].

    They are views but for the layers after the first of several members, whose parameters are not side by side.
    """

    def __init__(self, input_weight: Tensor, recurrent_weight: Tensor, bias: Tensor) -> None:
        self.input_weight = input_weight
        self.recurrent_weight = recurrent_weight.flatten(0, 1)
        self.bias = bias.flatten(0, 1)

    def input_bias(self) -> Tensor:
        """The biases of the input rows, [M, N, I, D]. A GRU has one more bias, for the recurrent row g."""
        rows = self.input_weight.shape[2]
        return self.bias[:, self.bias.shape[1] - rows :].unflatten(0, (len(self.input_weight), -1))

    def recurrent_bias(self) -> Tensor:
        """The biases [MN, G, D], with 0 for the input rows."""
        rest = self.bias.clone()
        rest[:, rest.shape[1] - self.input_weight.shape[2] :] = 0
        return rest


class Members:
    """The parameters of M members, [M, ...] each, of a model with the given weights."""

    def __init__(self, weights: RecurrentWeights, tensors: Sequence[Tensor]) -> None:
        self.all = RecurrentWeights.of(weights.cell, weights.offsets, tensors, weights.residual)
        self.num_layers = weights.num_layers
        self.embedding, self.output_weight, self.output_bias = tensors[0], tensors[4], tensors[5]

    @staticmethod
    def of(weights: RecurrentWeights) -> Members:
        """The unperturbed parameters with M = 1."""
        return Members(weights, [x[None] for x in weights.tensors])

    def layer(self, number: int) -> LayerMembers:
        """The parameters of a layer as they are now, counted from 0."""
        if number == 0:
            return LayerMembers(self.all.input_weight, self.all.recurrent_weight, self.all.bias)
        return LayerMembers(*(x[:, number - 1] for x in self.all.upper))

    def outputs(self, number: int, hidden_TBMH: Tensor, below_TBMH: Tensor | None) -> Tensor:
        """The outputs [T, B, M, H] of a layer from its hidden states and the outputs of the layer before, if any.

        Layer norm and residual connections are computed in the dtype of their parameters and rounded once.
        """
        norm_weight, norm_bias = self.all.norm_weight, self.all.norm_bias
        if not self.all.residual:
            below_TBMH = None
        if norm_weight is None and below_TBMH is None:
            return hidden_TBMH
        y_TBMH = hidden_TBMH.to(self.output_bias.dtype)
        if norm_weight is not None and norm_bias is not None:
            normal_TBMH = F.layer_norm(y_TBMH, y_TBMH.shape[3:], eps=NORM_EPS)
            y_TBMH = torch.addcmul(norm_bias[:, number], normal_TBMH, norm_weight[:, number])
        if below_TBMH is not None:
            y_TBMH = y_TBMH + below_TBMH
        return y_TBMH.to(hidden_TBMH.dtype)


class PerturbedMembers:
    """Buffers for the members of n probes, rewritten for each n seeds.

    weights: the parameters. Those with offset -1 are not perturbed. bfloat16: whether recurrent and output weights
    become bfloat16. They are then rounded to the bfloat16 grid at |w| + eps, on which w + eps and w - eps are exact.
    Everything else is perturbed in float32, or in float64 for float64 parameters.
    """

    def __init__(self, weights: RecurrentWeights, probes: int, bfloat16: bool) -> None:
        self._weights = weights
        self._bfloat16 = bfloat16
        wide = wide_dtype(weights.bias.dtype)
        self._buffers = [
            x.new_empty((probes, 2, *x.shape), dtype=torch.bfloat16 if bfloat16 and name in MULTIPLIED else wide)
            for name, x in zip(weights.names, weights.tensors, strict=True)
        ]
        self.members = Members(weights, [buffer.flatten(0, 1) for buffer in self._buffers])

    def write(self, alpha: Tensor, seeds: Tensor) -> None:
        """Writes the members of `seeds` int64 [n] with eps `alpha`, float64 [1], without waiting for the device.

        Both tensors must be on the device of the parameters.
        """
        weights = self._weights
        for name, x, buffer, offset in zip(weights.names, weights.tensors, self._buffers, weights.offsets, strict=True):
            if offset < 0:
                buffer.copy_(x)
            else:
                ops.apply_probes(self._source(name, x, alpha), alpha, seeds, offset=offset, out=buffer)

    def _source(self, name: str, x: Tensor, alpha: Tensor) -> Tensor:
        """Parameter x, rounded if it must be, as the source to perturb."""
        if self._bfloat16 and name in MULTIPLIED:
            return on_bfloat16_grid(x, alpha)
        if self._bfloat16 and name in ("bias", "upper_bias") and self._weights.cell == "gru":
            bias = x.float()  # row g is added within the recurrence, in bfloat16
            return torch.cat([on_bfloat16_grid(bias[..., :1, :], alpha), bias[..., 1:, :]], dim=-2)
        return x


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which parameters of `dtype` are perturbed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def on_bfloat16_grid(x: Tensor, eps: Tensor) -> Tensor:
    """x in float32, rounded to a multiple of the last bit of a bfloat16 number of size |x| + eps."""
    wide = x.float()
    size = (wide.abs() + eps.abs().float()).clamp(min=2.0**-100)
    power = (size.view(torch.int32) & 0x7F800000).view(torch.float32)  # the exponent alone: exact on every device
    spacing = power * 2.0**-7
    return torch.round(wide / spacing) * spacing
