"""Scores a model on sets of batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple

import torch
from torch import Tensor

from ..distributed.replicas import Replicas
from ..interrupts import InterruptGate
from ..models import IGNORE_INDEX, LanguageModel
from ..tasks import Batch, BatchSets, Score
from .config import TrainConfig

_MOST_TOKENS = 1 << 20
"""Tokens that are scored at once: their numbers alone take 16 bytes each."""
_SEQUENCES = 256
"""Sequences that are scored at once by default: with fewer the kernel reads the weights more often."""


def regroup(sets: BatchSets, config: TrainConfig) -> dict[str, list[Batch]]:
    """The same sequences in the same order, in batches of the config's eval_batch_size, if they are of one length."""
    size = config.eval_batch_size or config.micro_batch_size or max(config.batch_size, _SEQUENCES)
    return {name: list(_regroup(batches, size)) for name, batches in sets.items()}


def _regroup(batches: Sequence[Batch], size: int) -> Iterator[Batch]:
    waiting: list[Batch] = []
    for batch in batches:
        length = batch.tokens.shape[1]
        most = max(1, min(size, _MOST_TOKENS // length))
        for part in map(Batch, batch.tokens.split(most), batch.targets.split(most)):
            count = sum(len(each.tokens) for each in waiting)
            if waiting and (waiting[0].tokens.shape[1] != length or count + len(part.tokens) > most):
                yield _join(waiting)
                waiting = []
            waiting.append(part)
    if waiting:
        yield _join(waiting)


def _join(parts: Sequence[Batch]) -> Batch:
    if len(parts) == 1:
        return parts[0]
    return Batch(torch.cat([part.tokens for part in parts]), torch.cat([part.targets for part in parts]))


def evaluate(
    model: LanguageModel,
    batch_sets: Mapping[str, Sequence[Batch]],
    device: torch.device,
    gate: InterruptGate,
    replicas: Replicas | None,
) -> dict[str, Score]:
    """Scores the model on each set of batches, which replicas divide. Can be interrupted between batches."""

    def score_of(batch: Batch) -> list[float]:
        with gate.open():  # not around the exchange, where the other ranks would be left waiting
            nats, correct = model.score(*batch.to(device))
            return list(astuple(Score(nats, correct, int((batch.targets != IGNORE_INDEX).sum()))))

    scores = {}
    for name, batches in batch_sets.items():

        def rows(mine: slice, batches: Sequence[Batch] = batches) -> Tensor:
            return torch.tensor([score_of(batch) for batch in batches[mine]], dtype=torch.float64)

        count = len(batches)
        sums = rows(slice(0, count)) if replicas is None else replicas.exchange(rows, count, (3,))
        total = Score(nats=0.0, correct=0, count=0)
        for nats, correct, scored in sums.tolist():
            total += Score(nats, int(correct), int(scored))
        scores[name] = total
    return scores
