"""Validation: batches regrouped for the kernel, and a memory that does not grow with the context."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.train.runs import SMALL, metrics_of
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


@pytest.mark.parametrize("floats", [1, 1 << 22])
def test_whole_answers_are_those_of_rows_scored_one_by_one(floats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zo_kernels.train.evaluate._FLOATS", floats)  # a token at a time, or all at once
    model, given = LSTM(3, 4, 8, 2, seed=0), batch(60, 4)
    targets = given.tokens % 3
    targets[torch.rand(60, 4, generator=torch.Generator().manual_seed(1)) < 0.6] = -100
    sets = {"a": [Batch(given.tokens % 3, targets)]}
    counts = [(model.score(x[None], y[None])[1], int((y != -100).sum())) for x, y in zip(*sets["a"][0], strict=True)]
    gate, device = InterruptGate(), torch.device("cpu")
    with gate:
        found = evaluate(model, sets, device, gate, None, has_answers=True)["a"]
        plain = evaluate(model, sets, device, gate, None)["a"]
    answers = [(right, count) for right, count in counts if count > 0]
    assert 0 < found.exact == sum(right == count for right, count in answers) < found.answers == len(answers) < 60
    assert found.exact_accuracy == found.exact / found.answers
    assert (plain.exact_accuracy, plain.loss, plain.accuracy) == (None, found.loss, found.accuracy)


def test_pairs_tell_their_whole_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "pairs.csv", tmp_path / "run"
    data.write_text("in,out\n" + "".join(f"{word},{word}\n" for word in ("a", "b") for _ in range(30)))
    flags = ["--task", "pairs", "--data", str(data), "--input", "in", "--target", "out", "--validate-every", "40"]
    assert main([*flags, "--solver", "bptt", "--lr", "0.05", "--steps", "80", "--out", str(run)]) == 0
    assert "validation, exact" in (shown := capsys.readouterr().out)
    assert "(100% right, 100% exact)" in shown
    written = (run / "metrics.jsonl").read_bytes()
    first, *_, last = metrics_of(run)
    assert first["validation_exact_accuracy"] <= first["validation_accuracy"] < 1
    assert (last["validation_exact_accuracy"], last["test_exact_accuracy"]) == (1, 1)
    assert "validation_exact_loss" not in last
    assert main(["--resume", str(run)]) == 0
    assert (run / "metrics.jsonl").read_bytes() == written  # the journal has them


def test_metrics_of_time_and_memory(tmp_path: Path) -> None:
    assert main([*SMALL, "--validate-every", "2", "--out", str(tmp_path / "run")]) == 0
    lines = metrics_of(tmp_path / "run")
    assert [line["tokens"] for line in lines[1:]] == [4 * 10 * step for step in range(1, 6)]
    seconds = [0, *(line["seconds"] for line in lines[1:])]
    assert [line["ms_per_step"] for line in lines[1:]] == [
        pytest.approx(1e3 * (after - before), abs=1e-3) for before, after in pairwise(seconds)
    ]
    measured = [line for line in lines if "peak_rss_mb" in line]
    assert [line["step"] for line in measured] == [0, 2, 4, 5]
    memory = [line["peak_rss_mb"] for line in measured]
    assert memory[0] > 20
    assert memory == sorted(memory)
    assert measured[0]["validation_share"] == 1
    assert all(0 < line["validation_share"] < 1 for line in measured[1:])
    assert all("peak_vram_mb" not in line for line in lines)


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
