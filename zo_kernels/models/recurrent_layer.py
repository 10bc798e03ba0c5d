"""Base class of the models with recurrent layers of independent heads: sizes, states and initial parameters."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ..backends.base import CellShape, RecurrentWeights
from .language import LanguageModel, States, empty_for

SIZES = ("vocab_size", "embed_dim", "hidden_size", "num_heads")
STATE_NAMES = ("h", "c", "n", "m")

_PRODUCTS = ("input_weight", "recurrent_weight", "output_weight")
"""How the names of the parameters end that multiply a vector per token."""


class RecurrentLayerLM(LanguageModel):
    """A language model with L recurrent layers of N independent heads.

    The states are each [L * N, B, D], the heads of the first layer first: the hidden state h, for an LSTM and
    sLSTM the cell state c, and for an sLSTM n and m.
    For one layer `torch.stack(states).transpose(1, 2)[:, :, None]` is FlashRNN's `states` [S, B, 1, N, D].
    """

    batch_dim: ClassVar[int] = 1

    cell: str
    """Name of the cell in FlashRNN."""

    head_dim: int
    num_layers: int
    layer_norm: bool
    residual: bool
    input_weight: Tensor
    recurrent_weight: Tensor
    bias: Tensor

    def _set_layer_sizes(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_size: int,
        num_heads: int,
        num_layers: int,
        layer_norm: bool,
        residual: bool,
    ) -> None:
        """Raises ValueError if a size is not a positive integer, num_heads does not divide hidden_size, or there are
        residual connections with a single layer."""
        self._set_sizes(
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_layers=num_layers,
        )
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by num_heads {num_heads}")
        if residual and num_layers == 1:
            raise ValueError("residual connections need num_layers of 2 or more")
        self.head_dim = hidden_size // num_heads
        self.layer_norm, self.residual = layer_norm, residual

    @abstractmethod
    def _cell_shape(self) -> CellShape:
        """Numbers of rows and states of the model's cell."""

    @abstractmethod
    def _as_recurrent(self) -> list[Tensor]:
        """The parameters, or views of them, in the layout and the order of `RecurrentLM`."""

    @property
    def name(self) -> str:
        """Name of the cell."""
        return self.cell

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states: h; or h, c; or h, c, n, m."""
        return STATE_NAMES[: self._cell_shape().states]

    @cached_property
    def num_products(self) -> int:
        """Number of multiply-adds per token of a forward pass without a token table."""
        return sum(p.numel() for name, p in self.named_parameters() if name.endswith(_PRODUCTS))

    def initial_states(self, batch_size: int) -> States:
        """The zero states that sequences start from, each [L * N, B, D], in the order of `state_names`."""
        shape = (self.num_layers * self.num_heads, batch_size, self.head_dim)
        return tuple(self.bias.new_zeros(shape) for _ in self.state_names)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws new parameters with `generator`, on its device, or from torch's global random state if None.

        The embedding is N(0, 1). Matrices are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), with fan_in E for the input
        projection of the first layer and H for those of the others, D for the recurrence and H for the output
        projection. Biases are 0, except that the forget gate of an LSTM or sLSTM has 1, so that it carries the state
        over many tokens from the start. A layer norm starts with weight 1 and bias 0.
        """
        tensors = self._as_recurrent()
        weights = RecurrentWeights.of(self.cell, [-1] * len(tensors), tensors)
        embedding = weights.embedding
        embedding.copy_(empty_for(embedding, generator).normal_(generator=generator))
        self._draw(weights.input_weight, self.embed_dim, generator)
        self._draw(weights.recurrent_weight, self.head_dim, generator)
        self._draw(weights.output_weight, self.hidden_size, generator)
        weights.output_bias.zero_()
        self._start_bias(weights.bias)
        if weights.upper:
            input_weight, recurrent_weight, bias = weights.upper
            self._draw(input_weight, self.hidden_size, generator)
            self._draw(recurrent_weight, self.head_dim, generator)
            self._start_bias(bias.transpose(0, 1))
        if weights.norm_weight is not None and weights.norm_bias is not None:
            weights.norm_weight.fill_(1.0)
            weights.norm_bias.zero_()

    def _draw(self, weight: Tensor, fan_in: int, generator: torch.Generator | None) -> None:
        bound = 1 / math.sqrt(fan_in)
        weight.copy_(empty_for(weight, generator).uniform_(-bound, bound, generator=generator))

    def _start_bias(self, bias: Tensor) -> None:
        """Sets biases of which the first dimension counts the gates."""
        bias.zero_()
        if self.cell in ("lstm", "slstm"):
            bias[1].fill_(1.0)
