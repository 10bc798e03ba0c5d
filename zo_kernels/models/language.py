"""What the language models with one recurrent layer have in common: sizes, states, populations."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..backends.base import CellShape
from ..ops.checks import IGNORE_INDEX, check_targets, check_tokens
from .population import ModelPopulation

States = tuple[Tensor, ...]
"""What a model carries from token to token: the hidden state h and, for an LSTM, the cell state c, each [N, B, D].

`torch.stack(states).transpose(1, 2)[:, :, None]` is FlashRNN's `states` [S, B, 1, N, D].
"""

SIZES = ("vocab_size", "embed_dim", "hidden_size", "num_heads")


class LanguageModel(nn.Module):
    """A language model whose populations are evaluated at many probes at once."""

    cell: str
    """FlashRNN's name of the cell."""

    vocab_size: int
    embed_dim: int
    hidden_size: int
    num_heads: int
    head_dim: int
    input_weight: Tensor
    recurrent_weight: Tensor
    bias: Tensor
    output_weight: Tensor

    def _set_sizes(self, vocab_size: int, embed_dim: int, hidden_size: int, num_heads: int) -> None:
        """Raises ValueError if a size is not a positive integer, or num_heads does not divide hidden_size."""
        for name, size in zip(SIZES, (vocab_size, embed_dim, hidden_size, num_heads), strict=True):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive integer, not {size!r}")
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} is not divisible by num_heads {num_heads}")
        self.vocab_size = vocab_size
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads

    @abstractmethod
    def _cell_shape(self) -> CellShape:
        """The numbers of rows and states of the model's cell."""

    @abstractmethod
    def _as_recurrent(self) -> list[Tensor]:
        """The parameters, or views of them, as `RecurrentLM` lays them out."""

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws new parameters, with `generator` on its own device; None means torch's global random state.

        The embedding is N(0, 1); matrices are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), with fan_in E for the input
        projection, D for the recurrence and H for the output projection; biases are 0, those of an LSTM's or sLSTM's
        forget gate 1: an open one carries the state over many tokens from the first step on.
        """

        def unfilled(weight: Tensor) -> Tensor:
            return torch.empty(weight.shape, device=weight.device if generator is None else generator.device)

        embedding, input_weight, recurrent_weight, bias, output_weight, output_bias = self._as_recurrent()
        embedding.copy_(unfilled(embedding).normal_(generator=generator))
        for weight, fan_in in (
            (input_weight, self.embed_dim),
            (recurrent_weight, self.head_dim),
            (output_weight, self.hidden_size),
        ):
            bound = 1 / math.sqrt(fan_in)
            weight.copy_(unfilled(weight).uniform_(-bound, bound, generator=generator))
        output_bias.zero_()
        bias.zero_()
        if self.cell in ("lstm", "slstm"):
            bias[1].fill_(1.0)

    def initial_states(self, batch_size: int) -> States:
        """The zero states, each [N, B, D], that a sequence starts from: h; h, c; or an sLSTM's h, c, n, m."""
        shape = (self.num_heads, batch_size, self.head_dim)
        return tuple(self.bias.new_zeros(shape) for _ in range(self._cell_shape().states))

    def population_loss(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        seeds: Tensor,
        eps: float,
        *,
        states: Sequence[Tensor] = (),
        precision: str = "float32",
    ) -> Tensor:
        """Losses [n, 2] (float64, on the CPU) at theta + eps * p(seeds[i]) and theta - eps * p(seeds[i]).

        theta is not written. The model's `population_nats` says how they are computed, and what precision costs.

        tokens_BT, targets_BT: as for `loss`.
        seeds: int64 [n]. If the parameters live in a `ParameterArena` (that of the optimizer), their elements are
            numbered as there, and those outside of it are not perturbed; else they are numbered as one of this model
            alone would, and frozen ones are not perturbed.
        eps: finite; float32 parameters see it rounded to float32.
        states: as from `population_states`: where the sequences' segment starts, overwritten with where it ends.
        precision: "float32", or "bfloat16" for faster products.

        Raises ValueError and TypeError as `loss` does, and for wrong seeds or states; these are then as they were.
        """
        count = int((targets_BT != IGNORE_INDEX).sum())
        total = self.population_nats(tokens_BT, targets_BT, seeds, eps, states=states, precision=precision)
        return total / count

    @abstractmethod
    def population_nats(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        seeds: Tensor,
        eps: float,
        *,
        states: Sequence[Tensor] = (),
        precision: str = "float32",
    ) -> Tensor:
        """As `population_loss`, but the sum over the scored positions: sums of segments and micro-batches add up."""

    def population_states(self, probes: int, batch_size: int) -> States:
        """The zero states of `probes` probes: each [n, 2, N, B, D], float32 (float64 if the parameters are)."""
        dtype = torch.float64 if self.bias.dtype == torch.float64 else torch.float32
        shape = (probes, 2, self.num_heads, batch_size, self.head_dim)
        return tuple(self.bias.new_zeros(shape, dtype=dtype) for _ in range(self._cell_shape().states))

    def check_batch(self, tokens_BT: Tensor, targets_BT: Tensor) -> None:
        """Raises ValueError as `loss` does, without computing anything."""
        check_tokens(tokens_BT, self.vocab_size)
        check_targets(tokens_BT, targets_BT, self.vocab_size)

    @property
    def num_products(self) -> int:
        """Multiply-adds of one token's forward pass, without the token table's savings."""
        return sum(p.numel() for p in (self.input_weight, self.recurrent_weight, self.output_weight))

    def population(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        *,
        micro_batch_size: int | None = None,
        segment_length: int | None = None,
        precision: str = "float32",
    ) -> ModelPopulation:
        """What `CDRGE.step` takes: the loss on this batch as a function of the probes.

        micro_batch_size: sequences evaluated at once, segment_length: tokens evaluated at once, each probe's states
        being carried on; both bound memory and change the losses by rounding only. None: all.
        precision: as for `population_loss`.

        Raises ValueError as `loss` does, if a size is below 1, or if no position is scored.
        """
        tokens_BT, targets_BT = tokens_BT.to(self.bias.device), targets_BT.to(self.bias.device)
        return ModelPopulation(self, tokens_BT, targets_BT, micro_batch_size, segment_length, precision)
