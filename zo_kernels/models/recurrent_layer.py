"""Base class of the models with one recurrent layer of independent heads: sizes, states and initial parameters."""

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


class RecurrentLayerLM(LanguageModel):
    """A language model with one recurrent layer of N independent heads.

    The states are each [N, B, D]: the hidden state h, for an LSTM and sLSTM the cell state c, and for an sLSTM n and m.
    `torch.stack(states).transpose(1, 2)[:, :, None]` is FlashRNN's `states` [S, B, 1, N, D].
    """

    batch_dim: ClassVar[int] = 1

    cell: str
    """Name of the cell in FlashRNN."""

    head_dim: int
    input_weight: Tensor
    recurrent_weight: Tensor
    bias: Tensor

    def _set_layer_sizes(self, vocab_size: int, embed_dim: int, hidden_size: int, num_heads: int) -> None:
        """Raises ValueError if a size is not a positive integer, or num_heads does not divide hidden_size."""
        self._set_sizes(vocab_size=vocab_size, embed_dim=embed_dim, hidden_size=hidden_size, num_heads=num_heads)
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by num_heads {num_heads}")
        self.head_dim = hidden_size // num_heads

    @abstractmethod
    def _cell_shape(self) -> CellShape:
        """Numbers of rows and states of the model's cell."""

    @abstractmethod
    def _as_recurrent(self) -> list[Tensor]:
        """The parameters, or views of them, in the layout of `RecurrentLM`."""

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
        return sum(p.numel() for p in (self.input_weight, self.recurrent_weight, self.output_weight))

    def initial_states(self, batch_size: int) -> States:
        """The zero states that sequences start from, each [N, B, D], in the order of `state_names`."""
        shape = (self.num_heads, batch_size, self.head_dim)
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
        for weight, fan_in in (
            (input_weight, self.embed_dim),
            (recurrent_weight, self.head_dim),
            (output_weight, self.hidden_size),
        ):
            bound = 1 / math.sqrt(fan_in)
            weight.copy_(empty_for(weight, generator).uniform_(-bound, bound, generator=generator))
        output_bias.zero_()
        bias.zero_()
        if self.cell in ("lstm", "slstm"):
            bias[1].fill_(1.0)
