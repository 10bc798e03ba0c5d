"""Solvers take the steps of a run: with forward passes alone, or with back-propagation for comparison."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..distributed.replicas import Replicas
from ..errors import UsageError
from ..estimators import Estimate, Population
from ..interrupts import InterruptGate
from ..models import IGNORE_INDEX, LanguageModel, RecurrentLM
from ..models.language import States
from ..optim import ActivityPerturbation, ZeroOrder
from ..run.journal import Row
from ..tasks import Batch
from .bptt import BPTT, make_optimizer
from .config import TrainConfig, activity_probes
from .forward import takes_populations
from .solver import Solver, split


class ZeroOrderSolver(Solver):
    """Trains with `ZeroOrder`: on populations where a kernel evaluates them, else one loss at a time."""

    name = "zo"
    replays = True

    def __init__(self, config: TrainConfig, model: LanguageModel, gate: InterruptGate) -> None:
        super().__init__(config, model, gate)
        self.optimizer = ZeroOrder(
            model.named_parameters(),
            lr=config.lr,
            eps=config.eps,
            estimator=config.estimator,
            probes=config.probes,
            seed=config.seed,
            distribution=config.distribution,
            transforms=config.transforms,
            dense=config.dense,
            max_cosine_distance=config.max_cosine_distance,
            weight_decay=config.weight_decay,
            check_every=0,  # the models are deterministic, and forward passes are counted
        )
        self.forwards = self.optimizer.estimator.forwards(config.probes) + config.stateful

    def join(self, replicas: Replicas) -> None:
        self.optimizer.replicas = replicas

    def digest(self) -> int:
        return self.optimizer.digest()

    def estimate(self, batch: Batch, lr: float) -> Estimate:
        self._set_lr(lr)
        self._read(batch)  # before anything that a replayed step does not do, so that it finds the same parameters
        size = self._config.micro_batch_size
        if self._config.max_cosine_distance is None:
            return self.optimizer.estimate(self._loss(batch, self.states, size), guard=self._gate.open)
        micro_batches = split(batch, size)
        starts = self.model.split_states(self.states, [len(part.tokens) for part in micro_batches])
        parts = [self._loss(part, start, None) for part, start in zip(micro_batches, starts, strict=True)]
        return self.optimizer.estimate(parts, guard=self._gate.open)

    def apply(self, estimate: Estimate) -> None:
        self.optimizer.apply(estimate)
        self._go_on()

    def _replay(self, row: Row) -> None:
        self._set_lr(row.lr)
        self.optimizer.replay(torch.from_numpy(row.coeffs.copy()))

    def _optimizer_state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        config, optimizer = self._config, self.optimizer
        optimizer.load_state_dict(state)
        optimizer.seed, optimizer.probes = config.seed, config.probes
        for group in optimizer.param_groups:
            group.update(eps=config.eps, weight_decay=config.weight_decay)

    def start_at(self, step: int) -> None:
        self.optimizer.steps_taken = step

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _loss(
        self, batch: Batch, states: States | None, micro_batch_size: int | None
    ) -> Population | Callable[[], Tensor]:
        """Returns the loss on the batch, read from these states on, as a population or a closure."""
        config = self._config
        if takes_populations(config, self.model):
            return self.model.population(
                *batch,
                micro_batch_size=micro_batch_size,
                segment_length=config.segment_length,
                states=states,
                precision=config.precision,
            )
        micro_batches = split(batch, micro_batch_size)
        starts = self.model.split_states(states, [len(part.tokens) for part in micro_batches])
        return lambda: mean_loss(self.model, micro_batches, config.segment_length, starts)


class BPTTSolver(Solver):
    """Trains with `BPTT`, gradients by back-propagation."""

    name = "bptt"
    replays = False

    def __init__(self, config: TrainConfig, model: LanguageModel, gate: InterruptGate) -> None:
        super().__init__(config, model, gate)
        self.forwards = 3 + config.stateful
        self._bptt = BPTT(
            model,
            config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            micro_batch_size=config.micro_batch_size,
            checkpoint_length=config.checkpoint_length,
            segment_length=config.segment_length,
            max_cosine_distance=config.max_cosine_distance,
        )

    def estimate(self, batch: Batch, lr: float) -> Estimate:
        for group in self._bptt.optimizer.param_groups:
            group["lr"] = lr
        self._read(batch)
        with self._gate.open():  # stopped within, `backward` leaves no gradients
            loss = self._bptt.backward(*batch, self.states)
        return Estimate(torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.tensor([loss], dtype=torch.float64))

    def apply(self, estimate: Estimate) -> None:
        self._bptt.update()
        self._go_on()

    def _replay(self, row: Row) -> None:
        raise NotImplementedError("the rows of back-propagation do not hold its gradients")

    def _optimizer_state(self) -> dict[str, Any]:
        return self._bptt.state_dict()

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        self._bptt.load_state_dict(state)
        for group in self._bptt.optimizer.param_groups:
            group["weight_decay"] = self._config.weight_decay

    def start_at(self, step: int) -> None:
        pass  # its steps do not depend on their number


class ActivitySolver(Solver):
    """Trains with `ActivityPerturbation`, on models whose activities it can reach."""

    name = "activity"
    replays = False

    def __init__(self, config: TrainConfig, model: LanguageModel, gate: InterruptGate) -> None:
        super().__init__(config, model, gate)
        if not isinstance(model, RecurrentLM) or model.num_layers > 1 or model.layer_norm:
            raise ValueError("--solver activity trains lstm, gru and elman with one layer and no layer norm")
        self.forwards = 1 + 2 * activity_probes(config) + config.stateful
        optimizer = make_optimizer(
            config.optimizer, list(model.parameters()), lr=config.lr, weight_decay=config.weight_decay
        )
        self._activity = ActivityPerturbation(optimizer, probes=config.probes, eps=config.eps, seed=config.seed)

    def join(self, replicas: Replicas) -> None:
        if (self._config.micro_batch_size or math.inf) >= self._config.batch_size:
            raise UsageError(
                "processes share the micro-batches of --solver activity: give a --micro-batch-size below the batch size"
            )
        self._activity.replicas = replicas

    def estimate(self, batch: Batch, lr: float) -> Estimate:
        config = self._config
        assert isinstance(self.model, RecurrentLM)
        for group in self._activity.optimizer.param_groups:
            group["lr"] = lr
        self._read(batch)
        activities = self.model.activity(
            *batch,
            credit_length=config.credit_length,
            local_gradient=config.local_gradient,
            micro_batch_size=config.micro_batch_size,
            states=self.states,
        )
        loss = self._activity.estimate(activities, guard=self._gate.open)
        return Estimate(torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.tensor([loss], dtype=torch.float64))

    def apply(self, estimate: Estimate) -> None:
        self._activity.update()
        self._go_on()

    def _replay(self, row: Row) -> None:
        raise NotImplementedError("the rows of activity perturbation do not hold its gradients")

    def _optimizer_state(self) -> dict[str, Any]:
        return self._activity.state_dict()

    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        self._activity.load_state_dict(state)
        for group in self._activity.optimizer.param_groups:
            group["weight_decay"] = self._config.weight_decay

    def start_at(self, step: int) -> None:
        self._activity.steps_taken = step


SOLVERS: dict[str, type[ZeroOrderSolver] | type[ActivitySolver] | type[BPTTSolver]] = {
    solver.name: solver for solver in (ZeroOrderSolver, ActivitySolver, BPTTSolver)
}
"""Every solver by the name of its flag."""


def lr_at(config: TrainConfig, step: int) -> float:
    """Returns the learning rate of a step, counted from 0: it falls linearly from lr to lr * lr_decay over the run."""
    return config.lr * (1 + (config.lr_decay - 1) * min(step, config.steps) / config.steps)


def mean_loss(
    model: LanguageModel,
    batches: Sequence[Batch],
    segment_length: int | None = None,
    states: Sequence[States | None] | None = None,
) -> Tensor:
    """Returns the mean loss over the scored positions of all batches: float64.

    segment_length: number of tokens evaluated at once, with the states carried over; None means all. For losses alone:
        gradients would flow through all segments.
    states: states that each batch starts from; None is the initial ones.
    """
    starts = [None] * len(batches) if states is None else states
    scored = [(batch.targets != IGNORE_INDEX).sum() for batch in batches]
    return torch.stack(
        [
            _nats(model, batch, start, count, segment_length)
            for batch, start, count in zip(batches, starts, scored, strict=True)
            if count > 0
        ]
    ).sum() / sum(scored)


def _nats(
    model: LanguageModel, batch: Batch, states: States | None, count: Tensor, segment_length: int | None
) -> Tensor:
    """Sum over the `count` scored positions of a batch: float64."""
    length = segment_length or batch.tokens.shape[1]
    if states is None and length >= batch.tokens.shape[1]:
        return model.loss(*batch) * count
    total = torch.zeros((), dtype=torch.float64, device=batch.tokens.device)
    for tokens, targets in zip(*(x.split(length, 1) for x in batch), strict=True):
        nats, states = model.segment_nats(tokens, targets, states)
        total = total + nats
    return total
