"""What is tested and measured, the most valuable first, with the seconds that it ought to take on an H200."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from . import models, ops
from .timing import Figure

CALLS, MINUTES = 2, 7.0
"""In so many calls of so many minutes everything is to be done, the build included."""

STARTUP, BUILD = 15.0, 50.0
"""Seconds of each call until its first test, and of the first call for the build."""


class Tests(NamedTuple):
    """Tests that figures stand on. Those of one batch run side by side, and so do the parts of each.

    parts: of each a file or folder, and the names of tests as pytest's -k has them. seconds: estimated, of all parts
    together; where Triton or flashrnn compiles, that is most of it.
    """

    batch: int
    parts: tuple[tuple[str, str], ...]
    seconds: float


_OPS, _MODELS, _TRAINING = (f"tests/gpu/test_{what}.py" for what in ("ops", "models", "training"))
_UPDATES = _TRAINING, "{device} and updates"

TESTS = {
    "ops": Tests(1, ((_OPS, "{device} and every_case"), (_OPS, "{device} and not every_case")), 45.0),
    "bfloat16": Tests(
        1, ((_MODELS, "{device} and (kernel or bfloat16 or resident or streamed) and not flashrnn"), _UPDATES), 60.0
    ),
    "float32": Tests(1, ((_MODELS, "{device} and populations"), (_TRAINING, "{device} and (updates or a_run)")), 60.0),
    # Each part compiles kernels of its own.
    "triton": Tests(
        2,
        (
            (_OPS, "triton and every_case and (apply_probe or swap or probe-) and not apply_probes"),
            (_OPS, "triton and every_case and apply_probes"),
            (_OPS, "triton and every_case and not (apply_probe or swap or probe- or distributions or drawn)"),
            (_OPS, "triton and every_case and (distributions or drawn)"),
            (_OPS, "triton and not every_case"),
        ),
        90.0,
    ),
    "flash": Tests(
        2,
        (
            (_MODELS, "{device} and flashrnn and lstm and not slstm and float32"),
            (_MODELS, "{device} and flashrnn and lstm and bfloat16"),
            _UPDATES,
        ),
        90.0,
    ),
}


class Measure(NamedTuple):
    """group: of TESTS. seconds: estimated; one that takes four times as long and a minute ends the run."""

    group: str
    function: Callable[..., Iterator[Figure]]
    arguments: tuple[str, ...] = ()
    seconds: float = 8.0

    @property
    def name(self) -> str:
        return " ".join([self.group, self.function.__name__, *self.arguments])


_STEPS = {
    "bfloat16": {"100k": 5.0, "1M": 5.0, "10M": 25.0, "1.1B": 55.0, "100M": 35.0},
    "float32": {"1.1B": 50.0, "10M": 20.0, "100M": 15.0, "1M": 10.0, "100k": 5.0},
    "flash-bfloat16": {"10M": 45.0, "100M": 50.0, "100k": 40.0},  # at 1.1B, an index of flashrnn exceeds 2^31
}


def plan(device: str) -> list[Measure]:
    def steps(way: str) -> list[Measure]:
        group = "flash" if way.startswith("flash") else way
        return [Measure(group, models.step, (way, size), seconds) for size, seconds in _STEPS[way].items()]

    on_ops = (ops.apply, ops.accumulate, ops.over_usual, ops.members, ops.lists, ops.drawn)
    measures = [
        *steps("bfloat16"),
        *steps("float32"),
        *(Measure(way, models.correlation, (way,)) for way in ("bfloat16", "float32")),
        *(Measure("ops", function) for function in on_ops),
        *(Measure("triton", function) for function in on_ops),
        *(Measure("flash", models.population, (way,), 15.0) for way in ("bfloat16", "float32", "flash")),
        Measure("flash", models.correlation, ("flash-bfloat16",)),
        *steps("flash-bfloat16"),
    ]
    absent = {"triton", "1M", "10M", "100M", "1.1B"} if device == "cpu" else set()  # one size of a step is enough
    return [m for m in measures if not absent & {m.group, *m.arguments}]


def total_seconds(device: str) -> float:
    """Estimated, of all calls together: the parts of a batch of tests take as long as its longest."""
    groups = {m.group for m in plan(device)}
    batches = {TESTS[group].batch: 0.0 for group in groups}
    for group in groups:
        batches[TESTS[group].batch] = max(batches[TESTS[group].batch], TESTS[group].seconds)
    return BUILD + CALLS * STARTUP + sum(batches.values()) + sum(m.seconds for m in plan(device))
