"""Validation: batches regrouped for the kernel, and a memory that does not grow with the context."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from zo_kernels.interrupts import InterruptGate
from zo_kernels.models import LSTM
from zo_kernels.tasks import Batch
from zo_kernels.train import default_config
from zo_kernels.train.__main__ import main
from zo_kernels.train.evaluate import evaluate, regroup


def batch(rows: int, length: int) -> Batch:
    tokens = torch.randint(5, (rows, length), generator=torch.Generator().manual_seed(rows * 100 + length))
    return Batch(tokens, tokens.roll(1, 1))


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"batch_size": 1}, [7, 2, 107]),  # at least 256, of one length
        ({"batch_size": 1, "micro_batch_size": 5}, [3, 4, 2, *[5] * 21, 2]),
        ({"eval_batch_size": 50, "micro_batch_size": 5}, [7, 2, 50, 50, 7]),
    ],
)
def test_sequences_keep_their_order(options: dict[str, int], sizes: list[int]) -> None:
    given = [batch(3, 4), batch(4, 4), batch(2, 9), batch(100, 4), batch(7, 4)]
    (found,) = regroup({"validation": given}, default_config(**options)).values()
    for each in given:
        assert any(torch.equal(each.tokens[0], row) for other in found for row in other.tokens)
    rows = [row.tolist() for each in found for row in each.tokens]
    assert rows == [row.tolist() for each in given for row in each.tokens]
    assert [len(each.tokens) for each in found] == sizes


def test_long_contexts_are_scored_one_by_one() -> None:
    given = [batch(4, 300_000)]
    (found,) = regroup({"validation": given}, default_config(batch_size=64)).values()
    assert [len(each.tokens) for each in found] == [3, 1]


def test_scores_do_not_depend_on_the_grouping() -> None:
    model, sets = LSTM(5, 4, 8, 2, seed=0), {"a": [batch(3, 4), batch(40, 4)], "b": [batch(1, 9)]}
    gate, device = InterruptGate(), torch.device("cpu")
    with gate:
        whole = evaluate(model, sets, device, gate, None)
        parts = evaluate(model, regroup(sets, default_config(eval_batch_size=2)), device, gate, None)
    for name, score in whole.items():
        assert (score.correct, score.count) == (parts[name].correct, parts[name].count)
        assert abs(score.loss - parts[name].loss) < 1e-6


def test_eval_tokens_and_the_share_of_the_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 200)
    command = ["--task", "text", "--data", str(text), "--steps", "1", "--probes", "2", "--hidden-size", "4"]
    assert main([*command, "--eval-tokens", "50", "--out", str(tmp_path / "run")]) == 0
    assert "% of the time validating" in capsys.readouterr().out
    assert main([*command, "--eval-tokens", "0"]) == 2
    assert "--eval-tokens must be at least 1, not 0" in capsys.readouterr().err
    assert main(["--eval-tokens", "5"]) == 2
    assert "--eval-tokens does not apply to the task copy" in capsys.readouterr().err
