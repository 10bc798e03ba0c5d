"""Base class of the models with recurrent layers of independent heads: sizes, states and initial parameters."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ..backends.base import CellShape
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
    input_weight: Tensor
    recurrent_weight: Tensor
    bias: Tensor

    def _set_layer_sizes(
        self, vocab_size: int, embed_dim: int, hidden_size: int, num_heads: int, num_layers: int = 1
    ) -> None:
        """Raises ValueError if a size is not a positive integer, or num_heads does not divide hidden_size."""
        self._set_sizes(
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_layers=num_layers,
        )
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by num_heads {num_heads}")
        self.head_dim = hidden_size // num_heads

    @abstractmethod
    def _cell_shape(self) -> CellShape:
        """Numbers of rows and states of the model's cell."""

    @abstractmethod
    def _as_recurrent(self) -> list[Tensor]:
        """The first six parameters, or views of them, in the layout of `RecurrentLM`."""

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
        projection, D for the recurrence and H for the output projection. Biases are 0, except that the forget gate of
        an LSTM or sLSTM has 1, so that it carries the state over many tokens from the start.
        """
        embedding, input_weight, recurrent_weight, bias, output_weight, output_bias = self._as_recurrent()
        embedding.copy_(empty_for(embedding, generator).normal_(generator=generator))
        self._draw(input_weight, self.embed_dim, generator)
        self._draw(recurrent_weight, self.head_dim, generator)
        self._draw(output_weight, self.hidden_size, generator)
        output_bias.zero_()
        self._start_bias(bias)

    def _draw(self, weight: Tensor, fan_in: int, generator: torch.Generator | None) -> None:
        bound = 1 / math.sqrt(fan_in)
        weight.copy_(empty_for(weight, generator).uniform_(-bound, bound, generator=generator))

    def _start_bias(self, bias: Tensor) -> None:
        """Sets biases of which the first dimension counts the gates."""
        bias.zero_()
        if self.cell in ("lstm", "slstm"):
            bias[1].fill_(1.0)
