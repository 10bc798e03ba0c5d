"""The loss of a language model on one batch, as an optimizer asks for it: at many probes at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..ops.checks import IGNORE_INDEX

if TYPE_CHECKING:
    from .language import LanguageModel

_CALL_WORK = 1e11
"""Multiply-adds of one call into the CPU kernel, which a Ctrl-C can't interrupt: about a second of one core."""


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
