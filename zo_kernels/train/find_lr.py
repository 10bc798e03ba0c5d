"""`--lr search`: short trial runs, and a learning rate a margin below the best one's."""

from __future__ import annotations

import math
from dataclasses import replace

from rich.console import Console

from ..errors import DivergenceError, GridRangeError
from .build import build
from .config import TrainConfig, UsageError, lr_at
from .interrupt_gate import InterruptGate
from .lr_search import SearchResult, search
from .ranks import Ranks

_REACH = 30.0
"""The first grid goes from the task's own learning rate over this to it times this."""

_MARGIN = 2.0
"""What the best trial's learning rate is divided by: the fastest at the beginning is close to one that diverges, and
noisier over a whole run (bench/results/training.md)."""

_LOST = 1.3
"""How far above its first a loss of a trial may be: those of runs that learn stay below 1.02 times it."""


def find_lr(config: TrainConfig, gate: InterruptGate, ranks: Ranks, console: Console) -> tuple[float, SearchResult]:
    """Half the learning rate whose trial ends with the lowest loss, and all trials; prints each.

    A trial is the beginning of the run: a tenth of its steps, at least 40, each with the same initial parameters and
    batches. Its loss is the mean of its last quarter's training losses; one that rises well above the first is lost.
    Raises UsageError if all diverge.
    """
    steps = min(config.steps, max(40, config.steps // 10))
    console.print(f"search  trials of {steps} steps around lr {config.lr:g}")

    def trial(lr: float) -> float:
        loss = _final_loss(replace(config, lr=lr), steps, gate, ranks)
        console.print(
            f"        lr {lr:<10.3g} loss {loss:.3f}" if math.isfinite(loss) else f"        lr {lr:<10.3g} diverges"
        )
        return loss

    try:
        found = search(trial, config.lr / _REACH, config.lr * _REACH)
    except ValueError as error:
        raise UsageError(str(error)) from error
    lr = float(f"{found.best / _MARGIN:.3g}")
    console.print(f"        best {found.best:.3g}: the run takes half of it, --lr {lr:g}")
    return lr, found


def _final_loss(config: TrainConfig, steps: int, gate: InterruptGate, ranks: Ranks) -> float:
    run = build(config, gate)
    ranks.join(run.solver)
    losses: list[float] = []
    try:
        for step in range(steps):
            batch = run.task.batch(step).to(run.device)
            losses.append(run.solver.step(batch, lr_at(config, step), lambda taken: None).loss)
            if losses[-1] > _LOST * losses[0]:
                return math.inf
    except (DivergenceError, GridRangeError):
        return math.inf
    last = losses[-max(1, steps // 4) :]
    return math.fsum(last) / len(last)
