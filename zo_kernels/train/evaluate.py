"""Scores a model on sets of batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, fields

import torch
from torch import Tensor

from ..distributed.replicas import Replicas
from ..interrupts import InterruptGate
from ..models import IGNORE_INDEX, LanguageModel
from ..run.metrics import EXACT
from ..tasks import Batch, BatchSets, Score
from .config import TrainConfig

_MOST_TOKENS = 1 << 20
"""Tokens that are scored at once: their numbers alone take 16 bytes each."""
_SEQUENCES = 256
"""Sequences that are scored at once by default: with fewer the kernel reads the weights more often."""
_FLOATS = 1 << 22
"""Hidden states and logits of a segment in which torch looks for whole answers, as numbers: 16 MiB."""


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
    *,
    has_answers: bool = False,
) -> dict[str, Score]:
    """Scores the model on each set of batches, which replicas divide. Can be interrupted between batches.

    has_answers: also counts the rows that are right as a whole. That takes one more forward pass, in torch.
    """

    def score_of(batch: Batch) -> list[float]:
        with gate.open():  # not around the exchange, where the other ranks would be left waiting
            batch = batch.to(device)
            nats, correct = model.score(*batch)
            exact, answers = _exact(model, batch) if has_answers else (0, 0)
            return list(astuple(Score(nats, correct, int((batch.targets != IGNORE_INDEX).sum()), exact, answers)))

    scores = {}
    for name, batches in batch_sets.items():

        def rows(mine: slice, batches: Sequence[Batch] = batches) -> Tensor:
            return torch.tensor([score_of(batch) for batch in batches[mine]], dtype=torch.float64)

        count = len(batches)
        width = len(fields(Score))
        sums = rows(slice(0, count)) if replicas is None else replicas.exchange(rows, count, (width,))
        total = Score(nats=0.0, correct=0, count=0)
        for nats, *counts in sums.tolist():
            total += Score(nats, *map(int, counts))
        scores[name] = total
    return scores


def as_scores(scores: Mapping[str, Score], *, has_accuracy: bool = True) -> dict[str, tuple[float, float]]:
    """The scores as the journal keeps them: after each set, its answers that are right as a whole, if it has any.

    has_accuracy: NaN stands for accuracies otherwise.
    """
    found = {}
    for name, score in scores.items():
        found[name] = (score.loss, score.accuracy if has_accuracy else math.nan)
        if score.exact_accuracy is not None:
            found[name + EXACT] = (math.nan, score.exact_accuracy)
    return found


@torch.no_grad()
def _exact(model: LanguageModel, batch: Batch) -> tuple[int, int]:
    """How many rows have no wrong target, and how many have a target."""
    rows = len(batch.tokens)
    length = max(1, _FLOATS // (rows * (model.hidden_size + model.vocab_size)))
    is_wrong_B, states = torch.zeros(rows, dtype=torch.bool, device=model.device), None
    for tokens_BT, targets_BT in zip(batch.tokens.split(length, 1), batch.targets.split(length, 1), strict=True):
        logits_BTV, states = model(tokens_BT, states)
        is_wrong_B |= ((logits_BTV.argmax(-1) != targets_BT) & (targets_BT != IGNORE_INDEX)).any(1)
    has_target_B = (batch.targets != IGNORE_INDEX).any(1)
    return int((has_target_B & ~is_wrong_B).sum()), int(has_target_B.sum())
