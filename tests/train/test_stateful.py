"""--stateful: each batch goes on where the last one ended, with states carried from step to step."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.train.crashes import finish, runs_alike
from tests.train.runs import SMALL, metrics_of, weights_of
from tests.train.test_bptt import batch, small
from tests.train.test_segments import model_of, truncated
from zo_kernels.interrupts import InterruptGate
from zo_kernels.models.build import MODEL_NAMES
from zo_kernels.philox import probe_seeds
from zo_kernels.run.folder import checkpoint_steps
from zo_kernels.tasks import Batch, Text
from zo_kernels.train.__main__ import main
from zo_kernels.train.bptt import BPTT
from zo_kernels.train.config import read_config
from zo_kernels.train.defaults import DEFAULTS
from zo_kernels.train.solvers import SOLVERS, Solver

STATEFUL = [*SMALL, "--task", "text", "--stateful", "--steps", "40", "--checkpoint-every", "7", "--validate-every", "9"]
KINDS = {
    "plain": [],
    "closures": ["--distribution", "normal", "--lr", "0.01", "--micro-batch-size", "2"],
    "segments": ["--segment-length", "4", "--micro-batch-size", "3", "--dense", "adam", "--lr", "0.01"],
    "dnc": ["--model", "dnc", "--memory-slots", "4", "--memory-width", "3"],
    "bptt": ["--solver", "bptt", "--lr", "0.01", "--segment-length", "4"],
}


def test_each_row_reads_the_whole_text_in_order(book: Path) -> None:
    task = Text(data=book, batch_size=3, context_length=50, seed=0, parts="0.8,0.1,0.1", stateful=True)
    text = task._training
    batches = [task.batch(step) for step in range(40)]
    for first, second in pairwise(batches):
        assert torch.equal(first.targets[:, -1], second.tokens[:, 0])
        assert torch.equal(first.tokens[:, 1:], first.targets[:, :-1])
    for row, start in enumerate((0, len(text) // 3, 2 * len(text) // 3)):
        read = torch.cat([each.tokens[row] for each in batches]).numpy()
        assert np.array_equal(read, np.resize(np.roll(text, -start), len(read)))
    assert torch.equal(task.batch(len(text) * 10**15 + 3).tokens, batches[3].tokens)
    random = Text(data=book, batch_size=3, context_length=50, seed=0, parts="0.8,0.1,0.1")
    held_out = zip(task.validation_batches()["validation"], random.validation_batches()["validation"], strict=True)
    assert all(torch.equal(x.tokens, y.tokens) for x, y in held_out)


def solver_of(name: str, solver: str = "zo", **options: Any) -> Solver:
    config = replace(DEFAULTS["text"], probes=3, eps=2.0**-6, stateful=True, batch_size=6, solver=solver, **options)
    return SOLVERS[solver](config, model_of(name), InterruptGate())


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(torch.cat(parts, 1) for parts in zip(*batches, strict=True)))


def in_two(length: int = 4) -> list[Batch]:
    tokens, targets = batch()
    return [Batch(tokens[:, :length], targets[:, :length]), Batch(tokens[:, length:], targets[:, length:])]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batch_size": 4},
        {"segment_length": 2},
        {"distribution": "normal"},
        {"distribution": "normal", "micro_batch_size": 4, "segment_length": 2},
        {"max_cosine_distance": 2.0, "micro_batch_size": 3},
    ],
)
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_probes_start_from_the_states_of_the_unperturbed_model(name: str, options: dict[str, Any]) -> None:
    """The second step's losses are those that forward passes from these states give."""
    solver, (first, second) = solver_of(name, **options), in_two()
    with torch.no_grad():
        before = solver.model(first.tokens)[1]
    solver.step(first, 0.1)
    assert solver.states is not None
    for state, expected in zip(solver.states, before, strict=True):  # with the parameters before the update
        torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    held = [state.clone() for state in solver.states]
    estimate = solver.estimate(second, 0.1)
    assert all(torch.equal(state, was) for state, was in zip(solver.states, held, strict=True))

    if "max_cosine_distance" in options:
        return
    model, seeds = solver.model, torch.from_numpy(probe_seeds(0, 1, 3))
    count = (second.targets != -100).sum()
    if options.get("distribution") == "normal":
        with torch.no_grad():
            nats, _ = model.segment_nats(*second, tuple(held))
        assert float((estimate.losses.mean() - nats / count).abs()) < 0.02
        shifted = solver_of(name, **options)
        shifted.step(first, 0.1)
        shifted.forget()
        assert not torch.equal(shifted.estimate(second, 0.1).losses, estimate.losses)
        return
    states = model.population_states(3, 6, tuple(held))
    expected = model.population_nats(*second, seeds, 2.0**-6, states=states) / count
    torch.testing.assert_close(estimate.losses, expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_zeroth_step_is_that_of_a_run_that_is_not_stateful(name: str, distribution: str) -> None:
    losses = solver_of(name, distribution=distribution).estimate(Batch(*batch()), 0.1).losses
    config = replace(DEFAULTS["text"], probes=3, eps=2.0**-6, distribution=distribution)
    plain = SOLVERS["zo"](config, model_of(name), InterruptGate()).estimate(Batch(*batch()), 0.1).losses
    torch.testing.assert_close(losses, plain, rtol=3e-7, atol=0)


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 4, "segment_length": 2}, {"checkpoint_length": 2}])
def test_the_baseline_carries_states_too(options: dict[str, Any]) -> None:
    solver, (first, second) = solver_of("lstm", "bptt", **options), in_two()
    solver.model.double()
    solver.forget()
    solver.states = tuple(state.double() for state in solver.states or ())
    expected = solver.model(first.tokens)[1]
    solver.step(first, 1e-9)
    assert solver.states is not None
    torch.testing.assert_close(solver.states, tuple(state.detach() for state in expected), rtol=1e-10, atol=1e-14)
    loss = solver.estimate(second, 1e-9).loss
    with torch.no_grad():
        nats, _ = solver.model.segment_nats(*second, solver.states)
    assert loss == pytest.approx(float(nats) / int((second.targets != -100).sum()), rel=1e-12)


def test_the_gradient_of_the_baseline_ends_at_the_step() -> None:
    """A batch in two steps with an lr of nearly 0 has the gradients of two segments."""
    whole = joined(in_two())
    _, expected = truncated(small(), *whole, 4)
    model = small()
    found: Tensor | float = 0.0
    states = model.initial_states(6)
    bptt = BPTT(model, lr=1.0)
    for part in in_two():
        bptt.backward(*part, states)
        share = int((part.targets != -100).sum()) / int((whole.targets != -100).sum())
        found = found + share * torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        states = tuple(state.detach() for state in model(part.tokens, states)[1])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "plain" else pytest.mark.slow) for kind in KINDS]
)
def test_a_killed_run_goes_on_bit_for_bit(kind: str, tmp_path: Path, book: Path) -> None:
    flags, whole, out = [*STATEFUL, "--data", str(book), *KINDS[kind]], tmp_path / "whole", tmp_path / "run"
    assert finish([*flags, "--out", str(whole)]) == 0
    assert finish([*flags, "--out", str(out)], "scores written", 3) == -9
    assert checkpoint_steps(out)[-1] < 27
    assert finish(["--resume", str(out)]) == 0
    assert runs_alike(out, whole)


def test_carrying_states_counts_as_a_forward_pass(tmp_path: Path, book: Path) -> None:
    flags = [*SMALL, "--task", "text", "--data", str(book), "--stateful"]
    assert main([*flags, "--out", str(tmp_path / "run")]) == 0
    assert read_config(tmp_path / "run").stateful
    lines = metrics_of(tmp_path / "run")
    assert [line["forwards"] for line in lines[1:]] == [7 * step for step in range(1, 6)]


def test_a_fork_goes_on_with_the_same_batches(tmp_path: Path, book: Path) -> None:
    flags = [*SMALL, "--task", "text", "--data", str(book), "--stateful"]
    assert main([*flags, "--out", str(tmp_path / "run")]) == 0
    fork = ["--fork", str(tmp_path / "run"), "--fork-step", "3"]
    assert main([*fork, "--out", str(tmp_path / "fork")]) == 0
    assert all(torch.equal(weights_of(tmp_path / "fork")[k], v) for k, v in weights_of(tmp_path / "run").items())


def test_a_fork_with_other_batches_starts_from_the_initial_states(tmp_path: Path, book: Path) -> None:
    flags = [*SMALL, "--task", "text", "--data", str(book), "--stateful", "--lr-decay", "1"]
    assert main([*flags, "--out", str(tmp_path / "run")]) == 0
    fork = ["--fork", str(tmp_path / "run"), "--steps", "7", "--batch-size", "3"]
    assert main([*fork, "--out", str(tmp_path / "fork")]) == 0
    assert main([*fork, "--out", str(tmp_path / "again")]) == 0
    assert all(torch.equal(weights_of(tmp_path / "again")[k], v) for k, v in weights_of(tmp_path / "fork").items())


@pytest.mark.parametrize("name", ["lstm", "dnc"])
def test_states_of_another_batch_or_model_are_refused(name: str) -> None:
    model, (tokens, targets) = model_of(name), batch()
    states = model.initial_states(5)
    for evaluate in (model.population, BPTT(model, lr=0.1).backward):
        with pytest.raises(ValueError, match=r"state \w+ must be of 6 sequences, but its shape is \[.*5"):
            evaluate(tokens, targets, states=states)
        with pytest.raises(ValueError, match=rf"the model {name} has \d states, but 1 were given"):
            evaluate(tokens, targets, states=states[:1])


@pytest.mark.parametrize("task", ["copy", "overfit"])
def test_only_texts_can_be_gone_on_in(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--task", task, "--stateful", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == f"error: --stateful does not apply to the task {task}\n"
