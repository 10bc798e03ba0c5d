"""The base class of all language models, and their populations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backends.base import PRECISIONS
from ..ops.checks import IGNORE_INDEX, check_targets, check_tokens
from ..tasks.base import score

CALL_WORK = 1e11
"""Multiply-adds of one call of the CPU kernel: about a second on one core, since SIGINT can't interrupt a call."""

_SCORED_FLOATS = 1 << 22
"""Hidden states and logits of a segment that torch scores, as numbers: 16 MiB of float32, and the logits once more."""

States = tuple[Tensor, ...]
"""The tensors that a model carries from token to token, in the order of its `state_names`."""


class LanguageModel(nn.Module):
    """A language model that evaluates its loss at many probes at once."""

    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    """The precisions that `population` takes, if the device has them too."""

    batch_dim: ClassVar[int] = 0
    """Dimension of the states that counts the sequences of a batch."""

    vocab_size: int
    embed_dim: int
    hidden_size: int
    num_heads: int
    embedding: Tensor
    output_weight: Tensor

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the model in `build_model`."""

    @property
    @abstractmethod
    def state_names(self) -> tuple[str, ...]:
        """Names of the states, in order."""

    @property
    @abstractmethod
    def num_products(self) -> int:
        """Number of multiply-adds per token of a forward pass without a token table."""

    @abstractmethod
    def initial_states(self, batch_size: int) -> States:
        """The states that `batch_size` sequences start from."""

    @abstractmethod
    def forward(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, T, V] for the token after each position, in the parameters' dtype, and the states after the last.

        tokens_BT: int64 or int32 [B, T], values in [0, V).
        states: the states after an earlier segment of the same sequences; None starts from `initial_states`.

        Raises ValueError if the tokens are not integers, not of rank 2, empty, or out of range, or if the shape of the
        states is wrong. Devices other than the CPU report tokens out of range in their own way.
        """

    @abstractmethod
    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats over the scored positions, from the initial states: float64 scalar.

        tokens_BT: int64 or int32 [B, T], values in [0, V).
        targets_BT: int64 [B, T], values in [0, V), or -100 at positions that are not scored. If no position is scored,
            the loss is NaN, as in torch.

        Raises ValueError as `forward` does, and if the targets' shape, dtype or range is wrong.
        """

    def segment_nats(
        self, tokens_BT: Tensor, targets_BT: Tensor, states: States | None = None
    ) -> tuple[Tensor, States]:
        """The cross-entropy in nats, summed over the scored positions, and the states after the last: for autograd.

        The sum is a float64 scalar, 0 if no position is scored. `loss` is the sum over the segments of a text divided
        by the number of scored positions, up to rounding.

        tokens_BT, targets_BT: as for `loss`, whose errors it raises, but for wrong targets those of torch.
        states: as for `forward`.
        """
        logits_BTV, states = self.forward(tokens_BT, states)
        logits_XV = logits_BTV.flatten(0, 1)
        if logits_XV.dtype.itemsize < 4:
            logits_XV = logits_XV.float()
        nats_X = F.cross_entropy(logits_XV, targets_BT.flatten(), ignore_index=IGNORE_INDEX, reduction="none")
        return nats_X.sum(dtype=torch.float64), states

    @torch.no_grad()
    def score(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[float, int]:
        """The cross-entropy in nats, summed over the scored positions, and how many targets have the largest logit.

        tokens_BT, targets_BT: as for `loss`, which differs by rounding. The tokens are read in segments, with the
            states carried over, so that memory does not grow with T. On the CPU, recurrent models use the kernel of
            `population_loss`.

        Raises the errors of `loss`.
        """
        self.check_batch(tokens_BT, targets_BT)
        length = self._scored_at_once(len(tokens_BT))
        nats, correct, states = 0.0, 0, self.initial_states(len(tokens_BT))
        for tokens, targets in zip(tokens_BT.split(length, 1), targets_BT.split(length, 1), strict=True):
            part, right, states = self._score(tokens, targets, states)
            nats, correct = nats + part, correct + right
        return nats, correct

    def _scored_at_once(self, batch_size: int) -> int:
        """Number of tokens of a segment of `score`."""
        return max(1, _SCORED_FLOATS // (batch_size * (self.hidden_size + self.vocab_size)))

    def _score(self, tokens_BT: Tensor, targets_BT: Tensor, states: States) -> tuple[float, int, States]:
        """Scores a segment that begins at `states`, and returns the states at its end, too."""
        logits_BTV, states = self.forward(tokens_BT, states)
        found = score(logits_BTV, targets_BT)
        return found.nats, found.correct, states

    @abstractmethod
    def next_logits(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, V] after the last token, and the states there, both float32 (float64 if the parameters are).

        Use it to generate: its memory does not grow with T. Raises the errors of `forward`.
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

        Does not write theta. See `population_nats` of the model for how losses are computed and how precise they are.

        tokens_BT, targets_BT: as for `loss`.
        seeds: int64 [n]. If an optimizer was built on the parameters, their elements have its numbers, and parameters
            that it does not have are not perturbed. Otherwise elements are numbered as for an optimizer of this model
            alone. Frozen parameters are not perturbed.
        eps: finite; rounded to float32 for float32 parameters.
        states: states from `population_states` at the start of a segment; overwritten with the states at its end.
        precision: one of `precisions`: "float32", or "bfloat16" for faster products.

        Raises the errors of `loss`, and ValueError or TypeError for wrong seeds or states, which are then not changed.
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
        """Like `population_loss`, but the sum over the scored positions, so that segments and micro-batches add up."""

    def forward_name(self, batch_size: int, precision: str = "float32") -> str:
        """What computes a population on so many sequences, in a few words, such as "kernel" or "torch".

        Raises RuntimeError, in one sentence, if nothing computes it in this precision here.
        """
        return "torch"

    def population_states(self, probes: int, batch_size: int, states: States | None = None) -> States:
        """States for n = `probes` probes, each [n, 2, *state], float32 (float64 if the parameters are).

        states: those that all probes start from, of `batch_size` sequences; None is `initial_states`.
        """
        states = self.initial_states(batch_size) if states is None else states
        return tuple(state.to(self.wide_dtype).expand(probes, 2, *state.shape).contiguous() for state in states)

    def split_states(self, states: States | None, sizes: Sequence[int]) -> list[States | None]:
        """The states of the micro-batches of these sizes, in order; None for each if `states` is None.

        Raises ValueError if the states are not those of as many sequences, or of another model.
        """
        if states is None:
            return [None] * len(sizes)
        if len(states) != len(self.state_names):
            raise ValueError(f"the model {self.name} has {len(self.state_names)} states, but {len(states)} were given")
        for name, state in zip(self.state_names, states, strict=True):
            if state.dim() <= self.batch_dim or state.shape[self.batch_dim] != sum(sizes):
                raise ValueError(
                    f"state {name} must be of {sum(sizes)} sequences, but its shape is {list(state.shape)}: "
                    f"dimension {self.batch_dim} counts them"
                )
        return list(zip(*(state.split(list(sizes), self.batch_dim) for state in states), strict=True))

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.output_weight.device

    @property
    def wide_dtype(self) -> torch.dtype:
        """Dtype in which populations are computed: float64 for float64 parameters, else float32."""
        return torch.float64 if self.output_weight.dtype == torch.float64 else torch.float32

    def check_batch(self, tokens_BT: Tensor, targets_BT: Tensor) -> None:
        """Raises the ValueErrors of `loss`, without computing it."""
        check_tokens(tokens_BT, self.vocab_size)
        check_targets(tokens_BT, targets_BT, self.vocab_size)

    def population(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        *,
        micro_batch_size: int | None = None,
        segment_length: int | None = None,
        states: States | None = None,
        precision: str = "float32",
    ) -> ModelPopulation:
        """The loss on this batch as a function of the probes, for `CDRGE.step`.

        micro_batch_size: number of sequences evaluated at once; None means all.
        segment_length: number of tokens evaluated at once, with the states carried over; None means all.
        states: states of the unperturbed model that every probe starts from, as `forward` returns them; None starts
            from `initial_states`. They are not changed.
        precision: as for `population_loss`.

        Smaller sizes need less memory and change the losses only by rounding. Raises the errors of `loss`, ValueError
        if a size is below 1, no position is scored, or the states are of another batch or model, and RuntimeError if
        nothing computes this population here in this precision.
        """
        tokens_BT, targets_BT = tokens_BT.to(self.device), targets_BT.to(self.device)
        return ModelPopulation(self, tokens_BT, targets_BT, micro_batch_size, segment_length, states, precision)

    def _set_sizes(self, **sizes: int) -> None:
        """Sets the sizes as attributes. Raises ValueError, without setting any, if one is no integer in [1, 2^31)."""
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be a positive integer, not {size!r}")
            if size >= 2**31:  # torch would say the same in many lines
                raise ValueError(f"{name} must be below 2^31, not {size}")
        for name, size in sizes.items():
            setattr(self, name, size)


class ModelPopulation:
    """Losses of a language model on one batch; a `zo_kernels.estimators.BatchPopulation`.

    Use `model.population(tokens, targets)` to build it. The batch is evaluated in micro-batches and segments. A loss is
    the sum of their nats divided by the number of scored positions of the whole batch.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        micro_batch_size: int | None,
        segment_length: int | None,
        states: States | None,
        precision: str,
    ) -> None:
        model.check_batch(tokens_BT, targets_BT)
        for name, size in (("micro_batch_size", micro_batch_size), ("segment_length", segment_length)):
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ValueError(f"{name} must be a positive integer, not {size!r}")
        size = micro_batch_size or tokens_BT.shape[0]
        model.forward_name(min(size, tokens_BT.shape[0]), precision)  # refuses now rather than at the first step
        self.model = model
        self._precision = precision
        self.scored = int((targets_BT != IGNORE_INDEX).sum())
        if self.scored == 0:
            raise ValueError(f"there is nothing to learn from this batch: every target is {IGNORE_INDEX}")
        self._batches = list(zip(tokens_BT.split(size), targets_BT.split(size), strict=True))
        self._states = model.split_states(states, [len(tokens) for tokens, _ in self._batches])
        self._segment_length = segment_length or tokens_BT.shape[1]

    @property
    def parts(self) -> int:
        """Number of micro-batches."""
        return len(self._batches)

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        """Losses float64 [n, 2] at theta + eps * p(seeds[i]) and theta - eps * p(seeds[i]).

        Raises the errors of `LanguageModel.population_loss`.
        """
        total = torch.zeros(len(seeds), 2, dtype=torch.float64)
        for part in range(self.parts):
            total += self.part_nats(part, seeds, eps)
        return total / self.scored

    def part_nats(self, part: int, seeds: Tensor, eps: float) -> Tensor:
        """Cross-entropy in nats, summed over the scored positions of one micro-batch: float64 [n, 2]."""
        tokens, targets = self._batches[part]
        block = len(seeds) or 1
        if tokens.device.type == "cpu":
            at_once = len(tokens) * min(tokens.shape[1], self._segment_length)
            block = max(int(CALL_WORK / (self.model.num_products * at_once * 2)), torch.get_num_threads())
        start = self._states[part]
        return torch.cat([self._nats(tokens, targets, start, some, eps) for some in seeds.split(block)])

    def _nats(self, tokens_BT: Tensor, targets_BT: Tensor, start: States | None, seeds: Tensor, eps: float) -> Tensor:
        total = torch.zeros(len(seeds), 2, dtype=torch.float64)
        length = self._segment_length
        segments = list(zip(tokens_BT.split(length, 1), targets_BT.split(length, 1), strict=True))
        states: States = ()
        if start is not None or len(segments) > 1:
            states = self.model.population_states(len(seeds), len(tokens_BT), start)
        for tokens, targets in segments:
            total += self.model.population_nats(tokens, targets, seeds, eps, states=states, precision=self._precision)
        return total


def empty_for(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """An empty float32 tensor to draw a parameter's values in, so that they do not depend on device or dtype."""
    return torch.empty(weight.shape, device=weight.device if generator is None else generator.device)
