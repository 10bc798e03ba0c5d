"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import DivergenceError, GridRangeError
from ..models import LSTM
from ..tasks import Batch, BatchSets, Score, score
from .build import Run
from .interrupt_gate import InterruptGate
from .reporter import Reporter
from .run_folder import RunFolder


@dataclass(frozen=True)
class Outcome:
    """How a run ended: with all its steps done, unless one of these says otherwise.

    interrupted: by Ctrl-C.
    failure: why the optimizer could not take its next step.
    """

    interrupted: bool = False
    failure: str | None = None


def train(run: Run, folder: RunFolder, reporter: Reporter, gate: InterruptGate) -> Outcome:
    """Takes all steps of a run; validates before the first, after the last, and every so often between.

    Each step adds a line to the folder's metrics. Its train_loss is the mean over the probes' losses, taken around the
    parameters as they were before its update; losses and accuracies of other sets are taken after it. However the run
    ends, the parameters are those after its last whole step.
    """
    config, task, model, optimizer = run.config, run.task, run.model, run.optimizer
    validation_batches = task.validation_batches()
    seconds = 0.0

    def loss_of(batch: Batch) -> Tensor:
        with gate.open():  # only forward passes can be interrupted, so that a step is taken and recorded, or neither
            return model.loss(batch.tokens, batch.targets)

    try:
        with gate.open():
            scores = evaluate(model, validation_batches, run.device)
        folder.add_metrics({"step": 0, **_as_metrics(scores)})
        reporter.validation(0, scores)

        for step in range(config.steps):
            started = time.perf_counter()
            lr = run.scheduler.get_last_lr()[0]
            batch = task.batch(step).to(run.device)
            loss = optimizer.step(partial(loss_of, batch))
            run.scheduler.step()
            seconds += time.perf_counter() - started

            assert optimizer.last is not None
            done = step + 1
            metrics = {
                "step": done,
                "train_loss": loss,
                "lr": float(lr),
                "skipped_probes": optimizer.last.skipped,
                "seconds": seconds,
            }
            reporter.step(done, loss, done * config.probes / seconds)
            if done % config.validate_every == 0 or done == config.steps:
                scores = evaluate(model, validation_batches, run.device)
                reporter.validation(done, scores)
                metrics |= _as_metrics(scores)
            if done == config.steps:
                metrics |= _as_metrics(evaluate(model, task.test_batches(), run.device))
            folder.add_metrics(metrics)
    except KeyboardInterrupt:
        return Outcome(interrupted=True)
    except (DivergenceError, GridRangeError) as error:
        return Outcome(failure=str(error))
    return Outcome()


@torch.no_grad()
def evaluate(model: LSTM, batch_sets: BatchSets, device: torch.device) -> dict[str, Score]:
    """The model's score on each set of batches."""
    scores = {}
    for name, batches in batch_sets.items():
        total = Score(nats=0.0, correct=0, count=0)
        for batch in batches:
            tokens, targets = batch.to(device)
            logits, _ = model(tokens)
            total += score(logits, targets)
        scores[name] = total
    return scores


def _as_metrics(scores: Mapping[str, Score]) -> dict[str, float]:
    """NAME_loss in nats per token and NAME_accuracy of each set."""
    metrics = {}
    for name, total in scores.items():
        metrics[f"{name}_loss"] = total.loss
        metrics[f"{name}_accuracy"] = total.accuracy
    return metrics
