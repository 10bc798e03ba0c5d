"""The monitor: the losses are those of runs that went wrong, or did not, in numbers like theirs."""

import math

import pytest
import torch
from torch import Tensor

from zo_kernels.train.divergence import DivergenceMonitor

LR, EPS = 0.3, 0.03

NO_PAIRS = torch.ones(5, dtype=torch.float64)
"""Losses of a solver that does not compare two sides of a probe."""


def pair(loss: float, spread: float, probes: int = 8) -> Tensor:
    """Losses [n, 2] around `loss` with |L+ - L-| of `spread`, in both directions."""
    half = torch.linspace(0.5, 1.5, probes, dtype=torch.float64) * spread / 2
    half[::2] *= -1
    return torch.stack((loss + half, loss - half), dim=1)


def seen(monitor: DivergenceMonitor, losses: list[float], spread: float = 0.01, first: int = 1) -> list[str]:
    """What the monitor says of a run with these losses, and a spread that is a share of each."""
    return [
        warning
        for step, loss in enumerate(losses, start=first)
        for warning in monitor.observe(step, loss, pair(loss, spread * loss), LR, EPS)
    ]


def learning(steps: int, final: float = 0.02) -> list[float]:
    """Falls by a factor over the run, with noise of 10%."""
    noise = torch.rand(steps, generator=torch.Generator().manual_seed(0)).tolist()
    return [1.6 * final ** (i / steps) * (0.95 + 0.1 * noise[i]) for i in range(steps)]


@pytest.mark.parametrize("spread", [1e-6, 0.001, 0.15])
def test_a_run_that_learns_is_left_alone(spread: float) -> None:
    monitor = DivergenceMonitor(800)
    assert seen(monitor, learning(800), spread) == []
    assert not monitor.diverged


def test_eps_too_large() -> None:
    """Three nats between the sides of a probe: a share of 0.2 of a loss that is as inflated."""
    monitor = DivergenceMonitor(800)
    (warning,) = seen(monitor, [15.0] * 30, spread=0.2)
    assert warning.startswith("step 5: the losses on the two sides of a probe differ by 3 on average")
    assert warning.endswith("eps 0.03 is too large to measure a slope, lower it")
    (warning,) = seen(DivergenceMonitor(800), [0.02] * 30, spread=0.6)
    assert "too large" in warning


def test_a_few_wide_steps_are_not_yet_eps_too_large() -> None:
    monitor = DivergenceMonitor(800)
    for step in range(1, 101):
        spread = 0.01 if step % 5 == 0 else 0.4
        assert monitor.observe(step, 1.0, pair(1.0, spread), LR, EPS) == []


@pytest.mark.parametrize("spread", [0.0, 5e-8])
def test_eps_too_small(spread: float) -> None:
    (warning,) = seen(DivergenceMonitor(800), learning(50), spread)
    assert "no more than rounding: eps 0.03 is too small, raise it" in warning


def test_lr_too_large() -> None:
    monitor = DivergenceMonitor(800)
    (warning,) = seen(monitor, [1.61, 1.5, 1.77, 2.21, 2.58, 2.51, 2.74, 2.85, 3.52, 5.13, 6.43, 5.4])
    assert warning == "step 7: the loss has risen from 1.63 to 2.36: lr 0.3 is too large, lower it"


def test_lr_too_small() -> None:
    monitor = DivergenceMonitor(800)
    (warning,) = seen(monitor, learning(300, final=0.9))
    assert warning.startswith("step 120: the loss has moved from ")
    assert warning.endswith("lr 0.3 is too small, raise it")


def test_a_long_run_may_take_longer_to_move() -> None:
    losses = learning(2000, final=0.5)
    assert seen(DivergenceMonitor(2000), losses) == []
    assert len(seen(DivergenceMonitor(1), losses)) == 1


def test_without_probes_only_the_loss_is_watched() -> None:
    monitor = DivergenceMonitor(100)
    warnings = [w for step in range(1, 11) for w in monitor.observe(step, 1.0 + 0.2 * step, NO_PAIRS, LR, EPS)]
    assert len(warnings) == 1
    assert "lr 0.3 is too large" in warnings[0]


def test_probes_that_are_not_finite_are_passed_over() -> None:
    losses = pair(1.0, 0.01)
    losses[3, 1] = math.inf
    monitor = DivergenceMonitor(100)
    assert [w for step in range(1, 21) for w in monitor.observe(step, 1.0, losses, LR, EPS)] == []
    assert [w for step in range(21, 41) for w in monitor.observe(step, 1.0, losses * math.nan, LR, EPS)] == []


def test_curriculum_may_raise_the_loss() -> None:
    rising = [0.5 + 0.01 * step for step in range(100)]
    assert len(seen(DivergenceMonitor(800), rising)) == 1
    monitor = DivergenceMonitor(800, settled=100)
    assert seen(monitor, rising) == []
    assert not monitor.diverged
    (warning,) = seen(monitor, [1.5] * 150, first=101)
    assert warning.startswith("step 220: the loss has moved from 1.5 to 1.5 only")
    (warning,) = seen(monitor, [2.5] * 10, first=251)
    assert "the loss has risen from 1.5" in warning


def test_divergence_during_a_curriculum_is_measured_from_the_start() -> None:
    monitor = DivergenceMonitor(800, settled=100)
    seen(monitor, [1.0] * 10 + [0.05] * 20 + [2.9] * 40)
    assert not monitor.diverged
    seen(monitor, [3.2] * 25, first=71)
    assert monitor.diverged


@pytest.mark.parametrize("first", [51, 401])
def test_a_resumed_run_may_stand_still(first: int) -> None:
    assert seen(DivergenceMonitor(800), [0.5] * 300, first=first) == []


def test_a_run_that_diverges_is_not_told_of_eps_too() -> None:
    monitor = DivergenceMonitor(800)
    (warning,) = seen(monitor, [1.6 * 1.3**i for i in range(30)], spread=0.03)
    assert "lr 0.3 is too large" in warning


def test_diverged_when_the_loss_stays_far_above_its_best() -> None:
    monitor = DivergenceMonitor(800)
    seen(monitor, learning(100))
    seen(monitor, [1.0] * 21, first=101)
    assert not monitor.diverged
    seen(monitor, [1.0] * 4, first=122)
    assert monitor.diverged
    seen(monitor, [0.03] * 10, first=126)
    assert not monitor.diverged


def test_noise_of_a_loss_near_zero_is_not_divergence() -> None:
    monitor = DivergenceMonitor(800)
    seen(monitor, learning(100, final=1e-4))
    seen(monitor, [0.1] * 100, first=101)
    assert not monitor.diverged


def test_spikes_are_not_divergence() -> None:
    monitor = DivergenceMonitor(800)
    seen(monitor, learning(100))
    for start in range(101, 400, 20):
        seen(monitor, [1.0] * 5 + [0.03] * 15, first=start)
        assert not monitor.diverged


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_divergence(loss: float) -> None:
    monitor = DivergenceMonitor(800)
    seen(monitor, [1.0] * 10)
    assert monitor.observe(11, loss, NO_PAIRS, LR, EPS) == []
    assert monitor.diverged


def test_factor_says_how_far() -> None:
    losses = [1.0] * 10 + [1.9] * 40
    for factor, diverged in ((3.0, False), (1.5, True)):
        monitor = DivergenceMonitor(800, factor=factor)
        seen(monitor, losses)
        assert monitor.diverged == diverged
    for factor in (1.0, math.nan):
        with pytest.raises(ValueError, match="must be above 1"):
            DivergenceMonitor(800, factor=factor)
