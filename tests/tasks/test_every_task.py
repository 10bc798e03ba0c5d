"""What every task promises: the scores of perfect and constant predictors, and batches of seed and step alone."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.tasks.make import any_task
from zo_kernels.tasks import TASKS, Score, reads_numbers, score

each_task = pytest.mark.parametrize("name", TASKS)
each_of_tokens = pytest.mark.parametrize("name", [name for name in TASKS if not reads_numbers(name)])


def logits_for(tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Logits that are all but certain of the given tokens."""
    return 100.0 * F.one_hot(tokens, vocab_size).float()


@each_of_tokens
def test_perfect_predictor_scores_one_and_constant_predictors_their_frequency(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = any_task(name, tmp_path, monkeypatch)
    sets = {"training": [task.batch(0)], **task.validation_batches(), **task.test_batches()}
    for batches in sets.values():
        answers = [target for batch in batches for target in batch.targets.flatten().tolist() if target != -100]
        totals = {}
        for predicted in (None, *range(task.vocab_size)):
            total = Score(nats=0.0, correct=0, count=0)
            for _, targets in batches:
                constant = None if predicted is None else torch.full_like(targets, predicted)
                guess = targets.clamp(min=0) if constant is None else constant
                total += score(logits_for(guess, task.vocab_size), targets)
            totals[predicted] = total
        assert totals[None].accuracy == 1
        assert totals[None].loss == pytest.approx(0, abs=1e-6)
        assert all(total.count == len(answers) for total in totals.values())
        for token in range(task.vocab_size):
            assert totals[token].accuracy == answers.count(token) / len(answers)
        assert sum(totals[token].correct for token in range(task.vocab_size)) == len(answers)


@each_task
def test_batches_are_a_function_of_seed_and_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, again = (any_task(name, tmp_path, monkeypatch, seed=1) for _ in range(2))
    forward = [task.batch(step) for step in range(4)]
    torch.manual_seed(5)
    again.validation_batches()
    for step in (2, 0, 3, 1):
        assert all(torch.equal(*pair) for pair in zip(again.batch(step), forward[step], strict=True))
    for batches, others in zip(task.validation_batches().values(), again.validation_batches().values(), strict=True):
        assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(batches, others, strict=True))
    assert not torch.equal(any_task(name, tmp_path, monkeypatch, seed=2**64 - 1).batch(0).tokens, forward[0].tokens)
    drawn = {tuple(batch.tokens.flatten().tolist()) for batch in forward}
    assert len(drawn) == (1 if name == "overfit" else 4)


@each_of_tokens
def test_tokens_and_targets_are_in_the_vocabulary(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = any_task(name, tmp_path, monkeypatch)
    assert len(task.symbols) == len(set(task.symbols)) == task.vocab_size
    for tokens, targets in [task.batch(0), *task.validation_batches()["validation"]]:
        assert 0 <= int(tokens.min()) <= int(tokens.max()) < task.vocab_size
        assert -100 <= int(targets.min()) <= int(targets.max()) < task.vocab_size
        assert (targets != -100).any(dim=1).all()
