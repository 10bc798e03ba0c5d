"""The tables and figures of arXiv 2505.17852: their trials go on where they stopped, and each quick one goes the whole
way.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import zo_kernels.train
from bench.paper import figure4, figure5, pages, table1, table2, trials
from bench.paper.__main__ import NAMES, main
from bench.paper.long_context import growth, limit
from bench.paper.tasks import CountedCopy, CountedReverse, LongestCopy, LongestReverse, SumOfDigits
from bench.paper.training import folder_of, summary, train
from bench.paper.transformer import width_of
from bench.paper.trials import Trials
from bench.report import ROOT
from zo_kernels.models import IGNORE_INDEX

# Trials


def test_a_trial_is_measured_once(tmp_path):
    first = Trials(tmp_path / "some.json", "command")
    first.run({"lr": 0.1}, lambda: {"loss": 1.0})
    again = Trials(tmp_path / "some.json", "command")
    again.run({"lr": 0.1}, lambda: pytest.fail("measured twice"))
    again.run({"lr": 0.2}, lambda: {"loss": 2.0})
    assert [trial["found"]["loss"] for trial in Trials(tmp_path / "some.json", "").done] == [1.0, 2.0]
    assert again.find({"lr": 0.2}) == {"loss": 2.0}
    assert again.find({"lr": 0.3}) is None


def test_a_trial_that_is_stopped_leaves_the_others(tmp_path):
    def stop():
        raise KeyboardInterrupt

    some = Trials(tmp_path / "some.json", "command")
    some.run({"lr": 0.1}, lambda: {"loss": 1.0})
    with pytest.raises(KeyboardInterrupt):
        some.run({"lr": 0.2}, stop)
    assert len(Trials(tmp_path / "some.json", "").done) == 1


def test_two_processes_keep_each_others_trials(tmp_path):
    first, second = (Trials(tmp_path / "some.json", "command") for _ in range(2))
    first.run({"lr": 0.1}, lambda: {"loss": 1.0})
    second.run({"lr": 0.2}, lambda: {"loss": 2.0})
    assert [trial["found"]["loss"] for trial in Trials(tmp_path / "some.json", "").done] == [2.0, 1.0]


def test_only_the_wanted_trials_run(tmp_path):
    some = Trials(tmp_path / "some.json", "command", {"size": "100k"})
    for size in ("100k", "1m"):
        some.run({"size": size}, dict)
    some.run({"other": 1}, dict)
    assert [trial["settings"] for trial in some.done] == [{"size": "100k"}]


def test_times_wait_for_an_idle_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "cores_of_others", lambda: 1.5)
    some = Trials(tmp_path / "some.json", "command")
    some.run({"part": "time"}, lambda: pytest.fail("measured on a busy machine"), timed=True)
    some.run({"part": "memory"}, lambda: {"peak_mb": 1.0})
    stored = json.loads((tmp_path / "some.json").read_text())
    assert stored["not_yet_measured"] == [{"part": "time"}]
    monkeypatch.setattr(trials, "cores_of_others", lambda: 0.1)
    again = Trials(tmp_path / "some.json", "command")
    again.run({"part": "time"}, lambda: {"wall_s": 1.0}, timed=True)
    assert json.loads((tmp_path / "some.json").read_text())["not_yet_measured"] == []


# Tasks


def as_text(task, batch, row):
    tokens, targets = (x[row].tolist() for x in batch)
    return (
        "".join(task.symbols[token] for token in tokens),
        "".join("_" if target == IGNORE_INDEX else task.symbols[target] for target in targets),
    )


@pytest.mark.parametrize("kind", [CountedCopy, CountedReverse, SumOfDigits])
@pytest.mark.parametrize("longest", [1, 3, 60])
def test_answers_are_scored_but_for_their_first_token(kind, longest):
    task = kind(batch_size=16, max_length=longest, seed=3, alphabet_size=kind.defaults["alphabet_size"])
    assert task.vocab_size == len(set(task.symbols)) == 30
    assert task.reference_losses["chance"] == pytest.approx(np.log(30))
    blank = task.symbols[task.blank]
    for row in range(16):
        tokens, targets = as_text(task, task.batch(0), row)
        question, _, rest = tokens.partition("=" if kind is SumOfDigits else "|")
        if kind is SumOfDigits:
            answer = str(sum(map(int, question.split("+"))))
        else:
            answer = question[::-1] if kind is CountedReverse else question
        assert rest.startswith(answer)
        assert set(rest[len(answer) :]) == {blank}
        scored = f"{answer[1:]}{blank}{blank}"
        assert targets == "_" * (len(question) + 1) + scored + "_" * (len(tokens) - len(question) - 1 - len(scored))


@pytest.mark.parametrize(("kind", "counted"), [(LongestCopy, CountedCopy), (LongestReverse, CountedReverse)])
def test_training_on_the_longest_alone_has_the_same_validation(kind, counted):
    task, other = (each(batch_size=16, max_length=7, seed=3, alphabet_size=26) for each in (kind, counted))
    tokens, targets = task.batch(5)
    assert ((tokens == task.separator).sum(1) == tokens.shape[1] - 2 * 7).all()
    assert ((targets != IGNORE_INDEX).sum(1) == 7 + 1).all()
    assert not torch.equal(tokens, task.batch(6).tokens)
    for name, batches in task.validation_batches().items():
        for batch, same in zip(batches, other.validation_batches()[name], strict=True):
            assert torch.equal(batch.tokens, same.tokens)
            assert torch.equal(batch.targets, same.targets)


def test_the_longer_set_is_longer():
    task = SumOfDigits(batch_size=4, max_length=10, longer_length=60, seed=0, alphabet_size=10)
    for batch in task.validation_batches()["longer"]:
        pluses = (batch.tokens == task.alphabet_size + 1).sum(1)
        assert ((pluses >= 10) & (pluses < 60)).all()


# Figures by hand


def test_the_best_of_a_run_and_of_a_search(tmp_path):
    lines = [
        {"step": 0, "longer_loss": 3.4, "longer_accuracy": 0.0},
        {"step": 1, "train_loss": 3.0, "forwards": 192},
        {"step": 2, "forwards": 384, "longer_loss": 3.1, "longer_accuracy": 0.2},
        {"step": 4, "forwards": 768, "longer_loss": 3.2, "longer_accuracy": 0.3, "test_loss": 3.0},
    ]
    found = summary(lines, "longer")
    assert found["best"] == {"step": 2, "loss": 3.1, "accuracy": 0.2}
    assert (found["forwards"], found["steps"], found["test_loss"]) == (192, 4, 3.0)
    some = Trials(tmp_path / "table2.json", "command")
    for rate, loss, longest in ((0.2, 3.3, False), (0.1, 3.4, False), (0.2, 3.1, True)):
        settings = table2.settings_of("copy", "100k", "CD-RGE@96", rate, table2.FINE, longest=longest)
        best = {"step": 2, "loss": loss, "accuracy": 0.2}
        some.run(settings, lambda best=best: {**found, "best": best})
    best = table2.best_of(some, "copy", "100k", "CD-RGE@96")
    assert best["settings"]["lr"] == 0.2
    assert table2.forwards_to(best, 3.37) == 2 * 192
    assert table2.forwards_to(best, 3.0) is None
    row = next(line for line in table2.tables(some).splitlines() if "CD-RGE@96" in line)
    assert row.split(" | ")[3:] == ["3.100", "20.0 %", "2", "0.2 of 2", "0.015625", "10", "3.37", "beaten", "384 |"]


def test_dollars_of_a_step():
    """1 GB for 36 s a step is 1,000 GB-hours; 3.6 million passes over a token of 100k cost a TFLOP-hour each."""
    price = table1.dollars("100k", 96, 1.0, 36.0)
    flops = 2 * 150_740 * 1024 * 10 * 192 * 100_000
    assert price == pytest.approx(1000 * 0.018 + flops / 1e12 / 3600 * 0.001)


def test_the_growth_of_memory(tmp_path):
    some = Trials(tmp_path / "long-context.json", "command")
    for tokens, peak in ((1000, 410.0), (100_000, 1400.0)):
        some.run({"part": "memory", "size": "100k", "way": "BPTT", "tokens": tokens}, lambda p=peak: {"peak_mb": p})
    assert growth(some, "100k", "BPTT") == pytest.approx((400.0, 0.01))
    assert limit(some, "100k", "BPTT") == pytest.approx(760_000)
    assert limit(some, "100k", "CD-RGE") is None


def test_smoothing_by_hand():
    points = np.array([[0.3, -0.2]])
    shifted = [figure4.ackley(points + 0.5 * np.array(p)) for p in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    assert figure4.smoothed(points, 0.5) == pytest.approx(np.mean(shifted))
    assert figure4.ackley(np.zeros((1, 2))) == pytest.approx(0, abs=1e-12)
    assert figure4.sampled(points, 0.5, 2000) == pytest.approx(np.mean(shifted), abs=0.05)


def test_cosines_of_estimates():
    found = figure5._cosines("quadratic, d = 100", 400, 4)
    assert found["parameters"] == 100
    assert found["mean"] == pytest.approx(found["expected"], abs=0.06)


@pytest.mark.parametrize("parameters", [150_740, 1_139_700, 10_627_700])
def test_the_transformer_has_the_size(parameters):
    from bench.paper.transformer import _LanguageModel

    with torch.device("meta"):
        model = _LanguageModel(width_of(parameters), 1)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.06)


@pytest.mark.slow
def test_a_run_goes_on_from_its_folder(tmp_path):
    """The folder of a run that was killed after its last step, before the trial was stored."""
    settings = {"task": "copy", "max_length": 2, "batch_size": 2, "probes": 2, "hidden_size": 4, "steps": 3}
    first = train(settings, tmp_path, {"threads": 1})
    folder = tmp_path / folder_of(settings)
    assert not folder.exists()
    zo_kernels.train.run(zo_kernels.train.default_config(**settings, out=folder), quiet=True)
    assert train(settings, tmp_path, {"threads": 1}) == first
    assert not folder.exists()


# The page


def test_a_page_is_filled_again_with_the_same_text(tmp_path):
    Trials(tmp_path / "figure4.json", "command").write()
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- begin figure4 -->\nold\n<!-- end figure4 -->\n\nafter\n")
    pages.write(page, tmp_path, tmp_path)
    filled = page.read_text()
    assert re.fullmatch(
        r"before\n\n<!-- begin figure4 -->\n\n\| eps .*\n\n<!-- end figure4 -->\n\nafter\n", filled, re.S
    )
    pages.write(page, tmp_path, tmp_path)
    assert page.read_text() == filled


def test_the_page_has_what_the_results_say(tmp_path):
    page = tmp_path / "paper.md"
    text = (ROOT / "docs" / "paper.md").read_text()
    page.write_text(text)
    pages.write(page, ROOT / "bench" / "results" / "paper", ROOT / "docs" / "images" / "paper")
    assert page.read_text() == text, "python -m bench.paper report"
    assert set(re.findall(r"<!-- begin ([\w-]+) -->", text)) == set(NAMES)


# The whole way


@pytest.fixture
def corpus(tmp_path):
    text = "the quick brown fox jumps over the lazy dog \n" * 40
    for part in ("train", "valid", "test"):
        (tmp_path / f"ptb.{part}.txt").write_text(text)
    return tmp_path


QUICK = ["figure4", "figure5"]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_quick(name, corpus, monkeypatch, capsys):
    monkeypatch.setattr(trials, "cores_of_others", lambda: 0.0)
    before = sorted(Path(ROOT / "bench" / "results" / "paper").glob("*"))
    main([name, "--quick", "--data", str(corpus), "--runs", str(corpus / "runs")])
    content = json.loads((corpus / "runs" / "quick" / f"{name}.json").read_text())
    assert content["trials"]
    assert content["command"] == f"python -m bench.paper {name}"
    assert content["machine"]["torch"] == torch.__version__
    assert not any("failed" in trial["found"] for trial in content["trials"])
    assert (corpus / "runs" / "quick" / f"{name}.png").stat().st_size > 1000
    assert sorted(Path(ROOT / "bench" / "results" / "paper").glob("*")) == before
    assert str(corpus) not in json.dumps(content)
