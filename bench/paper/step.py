"""A step of the trainer without its files, for measurements."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from zo_kernels.distributed import is_launched, process_group
from zo_kernels.interrupts import InterruptGate
from zo_kernels.train.build import build
from zo_kernels.train.cli import parse
from zo_kernels.train.ranks import Ranks

_LR = 1e-3


def warm_up(arguments: list[str]) -> None:
    """Takes a step of a small model with these flags otherwise, alone."""
    sizes: dict[str, Any] = {
        "embed_dim": 2,
        "hidden_size": 4,
        "num_heads": 1,
        "context_length": 4,
        "batch_size": 2,
        "probes": 1,
    }
    config = replace(parse(arguments), preset=None, checkpoint_length=None, segment_length=None, **sizes)
    gate = InterruptGate()
    run = build(config, gate)
    with gate:
        run.solver.step(run.batch(0), _LR)


def make_step(arguments: list[str]) -> Callable[[int], object]:
    """Returns a function that takes the step of a number. Under torchrun the ranks share its probes."""
    config, stack = parse(arguments), ExitStack()
    if is_launched():
        stack.enter_context(process_group("cpu", 600.0))
    gate = InterruptGate()
    run = build(config, gate)
    Ranks(config).join(run.solver)

    def step(number: int) -> object:
        with gate:
            return run.solver.step(run.batch(number), _LR)

    step.keep = stack  # type: ignore[attr-defined]  # the process group lives as long as the step
    return step
