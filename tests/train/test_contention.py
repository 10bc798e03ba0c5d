"""The warning of steps that wait for a core."""

from __future__ import annotations

from pathlib import Path

import pytest

from zo_kernels.train import loop
from zo_kernels.train.__main__ import main
from zo_kernels.train.contention import CoreMonitor, seconds_waited


def warnings(steps: list[tuple[float, float]]) -> list[str]:
    """What is said of steps of these (seconds, share waited)."""
    monitor = CoreMonitor(threads=8)
    return [
        warning
        for number, (seconds, share) in enumerate(steps, 1)
        for warning in monitor.observe(number, seconds, seconds * share)
    ]


def test_it_is_said_once_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    (warning,) = warnings([(0.5, 0.0)] * 20 + [(0.5, 0.75)] * 100)
    assert warning.startswith("step 40: steps wait for a core 75% of their time, ")
    assert "lower --threads (8 now)" in warning
    assert "OMP_WAIT_POLICY=passive" in warning
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert warnings([(0.5, 0.75)] * 20)[0].endswith("lower --threads (8 now) or end other programs")


@pytest.mark.parametrize(
    "steps",
    [
        [(0.5, 0.3)] * 100,
        [(0.01, 0.9)] * 400,  # only 4 seconds
        [(5.0, 0.9)] * 19,
        [(0.5, 0.0), (0.5, 0.9), (0.5, 0.0)] * 40,  # not in the median
        [(0.0, 0.0)] * 100,
        [*[(0.5, 0.05)] * 50, (28800.0, 1.0), *[(0.5, 0.05)] * 50],  # one night
    ],
)
def test_nothing_is_said(steps: list[tuple[float, float]]) -> None:
    assert warnings(steps) == []


def test_a_run_says_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step waits a second more, as far as it is told."""
    now = iter(range(10**9))
    monkeypatch.setattr(loop, "seconds_waited", lambda: float(next(now)))
    monkeypatch.setattr("zo_kernels.train.contention._SECONDS", 0.0)
    small = ["--steps", "45", "--validate-every", "1", "--probes", "1", "--hidden-size", "2", "--batch-size", "1"]
    assert main([*small, "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.count("warning: step 20: steps wait for a core 100% of their time") == 1
    monkeypatch.setattr(loop, "seconds_waited", lambda: None)
    assert main([*small, "--device", "cpu", "--out", str(tmp_path / "other")]) == 0
    assert "wait for a core" not in capsys.readouterr().out


def test_the_wait_only_grows() -> None:
    first = seconds_waited()
    if first is None:
        pytest.skip("this system does not tell")
    second = seconds_waited()
    assert second is not None
    assert 0 <= first <= second
