"""What the language models have in common: states, populations, and what is asked of each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..backends.base import PRECISIONS
from ..ops.checks import IGNORE_INDEX, check_targets, check_tokens

_CALL_WORK = 1e11
"""Multiply-adds of one call into the CPU kernel, which a Ctrl-C can't interrupt: about a second of one core."""

States = tuple[Tensor, ...]
"""What a model carries from token to token, in the order of its `state_names`."""


class LanguageModel(nn.Module):
    """A language model whose populations are evaluated at many probes at once."""

    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    """What `population` takes, where the device has it too."""

    vocab_size: int
    embed_dim: int
    hidden_size: int
    num_heads: int
    embedding: Tensor
    output_weight: Tensor

    @property
    @abstractmethod
    def name(self) -> str:
        """What `build_model` calls it."""

    @property
    @abstractmethod
    def state_names(self) -> tuple[str, ...]:
        """The names of the states, in their order."""

    @property
    @abstractmethod
    def num_products(self) -> int:
        """Multiply-adds of one token's forward pass, without the savings of a token table."""

    @abstractmethod
    def initial_states(self, batch_size: int) -> States:
        """The states that `batch_size` sequences start from."""

    @abstractmethod
    def forward(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, T, V] of the token after each token, in the parameters' dtype, and the states after the last.

        tokens_BT: int64 or int32 [B, T], values in [0, V).
        states: those after an earlier segment of the same sequences; None starts from `initial_states`.

        Raises ValueError if the tokens are not integers, not of rank 2, empty, or out of range (the last on the CPU;
        other devices report it in their own way), or the states' shape does not fit.
        """

    @abstractmethod
    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the scored positions, from the initial states: float64 scalar.

        tokens_BT: int64 or int32 [B, T], values in [0, V).
        targets_BT: int64 [B, T], values in [0, V), or -100 where a position is not scored. If none is, the loss is NaN,
            as in torch.

        Raises ValueError as `forward` does, and if the targets' shape, dtype or range is wrong.
        """

    @abstractmethod
    def next_logits(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, V] after the last token and the states there, both float32 (float64 if the parameters are).

        The way to generate: as `forward`, in memory that does not grow with T. Raises as `forward` does.
        """

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
        precision: one of `precisions`: "float32", or "bfloat16" for faster products.

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
        """The initial states of `probes` probes: each [n, 2, *initial], float32 (float64 if the parameters are)."""
        return tuple(
            state.to(self.wide_dtype).expand(probes, 2, *state.shape).contiguous()
            for state in self.initial_states(batch_size)
        )

    @property
    def device(self) -> torch.device:
        """Of the parameters."""
        return self.output_weight.device

    @property
    def wide_dtype(self) -> torch.dtype:
        """What populations are computed in: float64 for float64 parameters, else float32."""
        return torch.float64 if self.output_weight.dtype == torch.float64 else torch.float32

    def check_batch(self, tokens_BT: Tensor, targets_BT: Tensor) -> None:
        """Raises ValueError as `loss` does, without computing anything."""
        check_tokens(tokens_BT, self.vocab_size)
        check_targets(tokens_BT, targets_BT, self.vocab_size)

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
        tokens_BT, targets_BT = tokens_BT.to(self.device), targets_BT.to(self.device)
        return ModelPopulation(self, tokens_BT, targets_BT, micro_batch_size, segment_length, precision)

    def _set_sizes(self, **sizes: int) -> None:
        """Sets attributes. Raises ValueError if one is not a positive integer; none is set then."""
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive integer, not {size!r}")
        for name, size in sizes.items():
            setattr(self, name, size)


class ModelPopulation:
    """Losses of a language model on one batch; a `zo_kernels.estimators.BatchPopulation`.

    Built by `model.population(tokens, targets)`. The batch is walked in micro-batches and segments; a loss is the sum
    of their nats over the number of scored positions of all, so that it is that of the whole batch.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        micro_batch_size: int | None,
        segment_length: int | None,
        precision: str,
    ) -> None:
        model.check_batch(tokens_BT, targets_BT)
        for name, size in (("micro_batch_size", micro_batch_size), ("segment_length", segment_length)):
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ValueError(f"{name} must be a positive integer, not {size!r}")
        self.model = model
        self._precision = precision
        self.scored = int((targets_BT != IGNORE_INDEX).sum())
        if self.scored == 0:
            raise ValueError(f"there is nothing to learn from this batch: every target is {IGNORE_INDEX}")
        size = micro_batch_size or tokens_BT.shape[0]
        self._batches = list(zip(tokens_BT.split(size), targets_BT.split(size), strict=True))
        self._segment_length = segment_length or tokens_BT.shape[1]

    @property
    def parts(self) -> int:
        """Micro-batches."""
        return len(self._batches)

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        """Losses float64 [n, 2] at theta + eps * p(seeds[i]) and theta - eps * p(seeds[i]).

        Raises as `LanguageModel.population_loss` does.
        """
        total = torch.zeros(len(seeds), 2, dtype=torch.float64)
        for part in range(self.parts):
            total += self.part_nats(part, seeds, eps)
        return total / self.scored

    def part_nats(self, part: int, seeds: Tensor, eps: float) -> Tensor:
        """Cross-entropy summed over the scored positions of one micro-batch: float64 [n, 2]."""
        tokens, targets = self._batches[part]
        block = len(seeds) or 1
        if tokens.device.type == "cpu":
            block = max(int(_CALL_WORK / (self.model.num_products * tokens.numel() * 2)), torch.get_num_threads())
        return torch.cat([self._nats(tokens, targets, some, eps) for some in seeds.split(block)])

    def _nats(self, tokens_BT: Tensor, targets_BT: Tensor, seeds: Tensor, eps: float) -> Tensor:
        total = torch.zeros(len(seeds), 2, dtype=torch.float64)
        length = self._segment_length
        segments = list(zip(tokens_BT.split(length, 1), targets_BT.split(length, 1), strict=True))
        states = self.model.population_states(len(seeds), len(tokens_BT)) if len(segments) > 1 else ()
        for tokens, targets in segments:
            total += self.model.population_nats(tokens, targets, seeds, eps, states=states, precision=self._precision)
        return total


def empty_for(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """Where to draw float32 values for a parameter, so that they are the same on every device and in every dtype."""
    return torch.empty(weight.shape, device=weight.device if generator is None else generator.device)
