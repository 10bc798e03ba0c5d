"""`--lr search`: short trial runs, of which the best one's learning rate is taken."""

from __future__ import annotations

import math
from dataclasses import replace

from rich.console import Console

from ..errors import DivergenceError, GridRangeError
from .build import build
from .config import TrainConfig, UsageError, lr_at
from .interrupt_gate import InterruptGate
from .lr_search import SearchResult, search

_REACH = 30.0
"""The first grid goes from the task's own learning rate over this to it times this."""


def find_lr(config: TrainConfig, gate: InterruptGate, console: Console) -> SearchResult:
    """The learning rate whose trial ends with the lowest loss; prints each trial.

    A trial is the whole run in small, its decay included: a twentieth of its steps, at least 20, from the same initial
    parameters on the same batches. Its loss is the mean of the last quarter's training losses. Raises UsageError if
    all diverge.
    """
    steps = max(20, config.steps // 20)
    console.print(f"search  trials of {steps} steps around lr {config.lr:g}")

    def trial(lr: float) -> float:
        loss = _final_loss(replace(config, lr=lr, steps=steps), gate)
        console.print(
            f"        lr {lr:<10.3g} loss {loss:.3f}" if math.isfinite(loss) else f"        lr {lr:<10.3g} diverges"
        )
        return loss

    try:
        found = search(trial, config.lr / _REACH, config.lr * _REACH)
    except ValueError as error:
        raise UsageError(str(error)) from error
    console.print(f"        best: --lr {found.best:.3g}")
    return found


def _final_loss(config: TrainConfig, gate: InterruptGate) -> float:
    run = build(config, gate)
    losses: list[float] = []
    try:
        for step in range(config.steps):
            batch = run.task.batch(step).to(run.device)
            losses.append(run.solver.step(batch, lr_at(config, step), lambda taken: None).loss)
    except (DivergenceError, GridRangeError):
        return math.inf
    last = losses[-max(1, config.steps // 4) :]
    return math.fsum(last) / len(last)
