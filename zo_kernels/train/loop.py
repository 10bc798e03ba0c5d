"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..backends import backend_for
from ..errors import DivergenceError, GridRangeError
from ..estimators import Population
from ..models import IGNORE_INDEX, RecurrentLM
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
    micro_batch_size = config.micro_batch_size or config.batch_size

    def evaluated(batch: Batch) -> Population | Callable[[], Tensor]:
        """The batch's loss as the optimizer takes it: all probes in one kernel where there is one."""
        if backend_for(run.device.type).fused_forward:
            population = model.population(*batch, micro_batch_size=config.micro_batch_size, precision=config.precision)
            return Interruptible(population, gate)
        micro_batches = [Batch(*parts) for parts in zip(*(x.split(micro_batch_size) for x in batch), strict=True)]

        def loss() -> Tensor:
            with gate.open():
                return mean_loss(model, micro_batches)

        return loss

    try:
        with gate.open():
            scores = evaluate(model, validation_batches, run.device)
        folder.add_metrics({"step": 0, **_as_metrics(scores)})
        reporter.validation(0, scores)

        for step in range(config.steps):
            started = time.perf_counter()
            lr = run.scheduler.get_last_lr()[0]
            batch = task.batch(step).to(run.device)
            loss = optimizer.step(evaluated(batch))
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


class Interruptible:
    """A population whose forward passes can be interrupted; only they can, so that a step is taken and recorded or
    neither."""

    def __init__(self, population: Population, gate: InterruptGate) -> None:
        self._population = population
        self._gate = gate

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        """As the population's own."""
        with self._gate.open():
            return self._population.population_loss(seeds, eps)


def mean_loss(model: RecurrentLM, batches: Sequence[Batch]) -> Tensor:
    """Mean over the scored positions of all batches, float64: each batch's mean weighs what it scores."""
    scored = [(batch.targets != IGNORE_INDEX).sum() for batch in batches]
    return torch.stack(
        [model.loss(*batch) * count for batch, count in zip(batches, scored, strict=True) if count > 0]
    ).sum() / sum(scored)


@torch.no_grad()
def evaluate(model: RecurrentLM, batch_sets: BatchSets, device: torch.device) -> dict[str, Score]:
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
