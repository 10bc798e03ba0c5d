"""--segment-length: losses of long contexts, read piece by piece, and back-propagation truncated at the pieces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.train.runs import SMALL, metrics_of, weights_of
from tests.train.test_bptt import NAMES, batch, descended, gradient_of, saved_bytes, small
from zo_kernels.interrupts import InterruptGate
from zo_kernels.models import build_model
from zo_kernels.models.build import MODEL_NAMES
from zo_kernels.models.language import LanguageModel
from zo_kernels.tasks import Batch
from zo_kernels.train.__main__ import main
from zo_kernels.train.bptt import BPTT
from zo_kernels.train.config import TrainConfig, read_config
from zo_kernels.train.defaults import DEFAULTS
from zo_kernels.train.solvers import ZeroOrderSolver, mean_loss


def config(**options: Any) -> TrainConfig:
    return replace(DEFAULTS["copy"], probes=3, eps=2.0**-6, **options)


def model_of(name: str) -> LanguageModel:
    memory = {"memory_slots": 4, "memory_width": 3} if "dnc" in name else {}
    return build_model(name, 5, embed_dim=4, hidden_size=8, num_heads=2, seed=1, **memory)


def losses_of(name: str, **options: Any) -> Tensor:
    """The losses [n, 2] of a step; the model keeps its parameters."""
    solver = ZeroOrderSolver(config(**options), model_of(name), InterruptGate())
    return solver.estimate(Batch(*batch()), 0.1).losses


@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_zero_order_losses_are_those_of_the_whole_context(name: str, distribution: str) -> None:
    """Of populations and of closures, with micro-batches too."""
    whole = losses_of(name, distribution=distribution)
    for options in ({"segment_length": 3}, {"segment_length": 1, "micro_batch_size": 4}):
        losses = losses_of(name, distribution=distribution, **options)
        assert not torch.equal(losses, torch.zeros_like(losses))
        torch.testing.assert_close(losses, whole, rtol=3e-7, atol=0)


@pytest.mark.parametrize("options", [{"max_cosine_distance": 2.0, "micro_batch_size": 3}, {"estimator": "2-spsa"}])
def test_every_loss_of_a_step_is_read_in_segments(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    nats_of = LanguageModel.segment_nats
    for distribution in ("rademacher", "normal"):
        model = model_of("lstm")
        population_nats = model.population_nats

        def spy(tokens: Tensor, *rest: Any, compute: Any = population_nats, **named: Any) -> Tensor:
            lengths.append(tokens.shape[1])
            return compute(tokens, *rest, **named)

        monkeypatch.setattr(model, "population_nats", spy)
        monkeypatch.setattr(
            LanguageModel,
            "segment_nats",
            lambda self, tokens, *rest: (lengths.append(tokens.shape[1]), nats_of(self, tokens, *rest))[1],
        )
        lengths.clear()
        solver = ZeroOrderSolver(config(segment_length=2, distribution=distribution, **options), model, InterruptGate())
        solver.step(Batch(*batch()), 0.1)
        assert set(lengths) == {2, 1}
        assert lengths.count(2) == 3 * lengths.count(1)  # 7 tokens


@pytest.mark.parametrize("name", ["lstm", "paper-dnc"])
@pytest.mark.parametrize("distribution", ["rademacher", "normal"])
def test_one_segment_changes_no_bit(name: str, distribution: str) -> None:
    whole = losses_of(name, distribution=distribution)
    for length in (7, 100):
        assert torch.equal(losses_of(name, distribution=distribution, segment_length=length), whole)


@pytest.mark.parametrize("name", ["gru", "dnc"])
def test_the_loss_of_a_closure_in_segments(name: str) -> None:
    model = small(name)
    with torch.no_grad():
        expected = model.loss(*batch())
        found = mean_loss(model, [Batch(*batch())], 2)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)


def truncated(model: LanguageModel, tokens: Tensor, targets: Tensor, length: int) -> tuple[float, Tensor]:
    """The loss and the gradient of truncated back-propagation, as it is defined."""
    logits, states = [], model.initial_states(len(tokens))
    for start in range(0, tokens.shape[1], length):
        logits_BTV, states = model(tokens[:, start : start + length], tuple(state.detach() for state in states))
        logits.append(logits_BTV)
    loss = F.cross_entropy(torch.cat(logits, 1).flatten(0, 1), targets.flatten(), ignore_index=-100)
    return loss.item(), gradient_of(model, loss)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "cut", [{}, {"micro_batch_size": 4}, {"checkpoint_length": 2}, {"micro_batch_size": 1, "max_cosine_distance": 2.0}]
)
def test_gradients_end_at_segments(name: str, cut: dict[str, Any]) -> None:
    expected, gradient = truncated(small(name), *batch(), 3)
    found, step = descended(small(name), segment_length=3, **cut)
    assert found == pytest.approx(expected, rel=1e-13)
    torch.testing.assert_close(step, gradient, rtol=1e-10, atol=1e-14)
    whole = gradient_of(small(name), small(name).loss(*batch()))
    assert float((gradient - whole).norm() / whole.norm()) > 1e-4  # the truncation shows


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_any_lengths(length: int, segment: int, piece: int, micro: int, pads: bool) -> None:
    tokens, targets = batch(4, length)
    if pads:
        targets[:, length // 2 :] = -100
    if (targets == -100).all():
        return
    expected, gradient = truncated(small(), tokens, targets, segment)
    model = small()
    bptt = BPTT(model, lr=1.0, segment_length=segment, checkpoint_length=piece, micro_batch_size=micro)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert bptt.step(tokens, targets) == pytest.approx(expected, rel=1e-13)
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.testing.assert_close(before - after, gradient, rtol=1e-10, atol=1e-14)


def test_one_segment_is_back_propagation_through_all() -> None:
    whole, one = descended(small()), descended(small(), segment_length=7)
    assert one[0] == whole[0]
    assert torch.equal(one[1], whole[1])


def test_truncation_keeps_less() -> None:
    whole = saved_bytes()
    assert saved_bytes(segment_length=8) < 0.3 * whole
    assert saved_bytes(segment_length=32, checkpoint_length=4) < 0.7 * saved_bytes(segment_length=32)


def test_an_interrupt_leaves_no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    bptt = BPTT(model, "adamw", lr=0.1, segment_length=3)
    calls = []

    def stop(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return LanguageModel.segment_nats(model, *arguments)

    monkeypatch.setattr(model, "segment_nats", stop)
    with pytest.raises(KeyboardInterrupt):
        bptt.step(*batch())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("solver", ["zo", "bptt"])
def test_command_line(solver: str, tmp_path: Path, book: Path) -> None:
    flags = [*SMALL, "--task", "text", "--data", str(book), "--solver", solver, "--validate-every", "5"]
    for out, more in (("whole", []), ("cut", ["--segment-length", "4"]), ("one", ["--segment-length", "10"])):
        assert main([*flags, *more, "--out", str(tmp_path / out)]) == 0
    assert read_config(tmp_path / "cut").segment_length == 4
    assert read_config(tmp_path / "whole").segment_length is None
    whole, cut, one = (weights_of(tmp_path / out) for out in ("whole", "cut", "one"))
    assert all(torch.equal(one[key], value) for key, value in whole.items())
    first = [metrics_of(tmp_path / out)[1]["train_loss"] for out in ("whole", "cut")]
    assert first[0] == pytest.approx(first[1], rel=1e-6)
    differs = max(float((cut[key] - value).abs().max()) for key, value in whole.items())
    assert differs > 0.01 if solver == "bptt" else differs < 0.01


def test_a_length_below_1_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--segment-length", "0", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == "error: --segment-length must be at least 1, not 0\n"
    with pytest.raises(ValueError, match="segment_length must be at least 1, not 0"):
        BPTT(small(), lr=0.1, segment_length=0)
