"""Scores: what a perfect and a constant predictor get, and that nothing unscored counts."""

import math

import pytest
import torch
from torch.nn import functional as F

from zo_kernels.tasks import Copy, Score, score


def logits_for(tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Logits that are all but certain of the given tokens."""
    return 100.0 * F.one_hot(tokens, vocab_size).float()


def test_perfect_predictor_scores_one_and_constant_predictor_its_frequency() -> None:
    task = Copy(batch_size=200, max_length=5, alphabet_size=4, seed=0)
    targets = task.batch(0).targets
    answers = targets[targets >= 0]
    perfect = score(logits_for(targets.clamp(min=0), 5), targets)
    assert perfect.accuracy == 1
    assert perfect.loss == pytest.approx(0, abs=1e-6)
    constant = score(logits_for(torch.full_like(targets, 2), 5), targets)
    assert constant.accuracy == (answers == 2).sum().item() / answers.numel()
    assert 0.2 < constant.accuracy < 0.3
    assert perfect.count == constant.count == answers.numel()


def test_unscored_positions_do_not_count() -> None:
    targets = torch.tensor([[-100, 1, 0, -100]])
    logits = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    changed = logits.clone()
    changed[0, [0, 3]] = float("nan")
    assert score(logits, targets) == score(changed, targets)
    assert score(logits, targets).loss == pytest.approx(F.cross_entropy(logits[0], targets[0]).item())


def test_scores_add_up_over_positions_not_batches() -> None:
    total = Score(nats=2.0, correct=1, count=4) + Score(nats=1.0, correct=1, count=1)
    assert total.loss == pytest.approx(3 / 5)
    assert total.accuracy == pytest.approx(2 / 5)


def test_uniform_logits_lose_log_vocab() -> None:
    assert score(torch.zeros(2, 3, 7), torch.ones(2, 3, dtype=torch.int64)).loss == pytest.approx(math.log(7))
