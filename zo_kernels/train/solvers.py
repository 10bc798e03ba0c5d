"""Solvers take the steps of a run: with forward passes alone, or with back-propagation for comparison."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..backends import backend_for
from ..estimators import Estimate, Population
from ..interrupts import InterruptGate
from ..models import IGNORE_INDEX, LanguageModel, RecurrentLM
from ..optim import ZeroOrder
from ..run.journal import Row
from ..tasks import Batch
from .bptt import BPTT
from .config import TrainConfig


class Solver(ABC):
    """Trains a model step by step.

    forwards: forward passes of a step. The backward pass of back-propagation counts as two.
    replays: whether a step can be repeated from its row in the journal.
    """

    model: LanguageModel
    forwards: int
    replays: bool

    @abstractmethod
    def estimate(self, batch: Batch, lr: float) -> Estimate:
        """Estimates the gradient of the next step and sets its lr. The parameters stay the same."""

    @abstractmethod
    def apply(self, estimate: Estimate) -> None:
        """Takes the step along its estimate. If it raises, the parameters have not changed."""

    def step(self, batch: Batch, lr: float) -> Estimate:
        """`estimate`, then `apply`."""
        estimate = self.estimate(batch, lr)
        self.apply(estimate)
        return estimate

    @abstractmethod
    def replay(self, row: Row) -> None:
        """Repeats the step of a journal row, bit for bit, if the solver `replays`."""

    @abstractmethod
    def state(self) -> Any:
        """Returns all that the next step depends on besides the model's state_dict, as `save_checkpoint` takes it."""

    @abstractmethod
    def load_state(self, state: Any) -> None:
        """Restores a `state`, after the model's state_dict. Hyper-parameters remain those of the config.

        Raises ValueError, changing nothing, if it is another solver's.
        """

    @abstractmethod
    def start_at(self, step: int) -> None:
        """Numbers the next step, where there is no state to restore."""


class ZeroOrderSolver(Solver):
    """Trains with `ZeroOrder`: on populations where a kernel evaluates them, else one loss at a time."""

    replays = True

    def __init__(self, config: TrainConfig, model: LanguageModel, gate: InterruptGate) -> None:
        self.model = model
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
        self.forwards = self.optimizer.estimator.forwards(config.probes)
        self._config = config
        self._gate = gate

    def estimate(self, batch: Batch, lr: float) -> Estimate:
        self._set_lr(lr)
        size = self._config.micro_batch_size
        if self._config.max_cosine_distance is None:
            return self.optimizer.estimate(self._loss(batch, size), guard=self._gate.open)
        parts = [self._loss(part, None) for part in _split(batch, size)]
        return self.optimizer.estimate(parts, guard=self._gate.open)

    def apply(self, estimate: Estimate) -> None:
        self.optimizer.apply(estimate)

    def replay(self, row: Row) -> None:
        self._set_lr(row.lr)
        self.optimizer.replay(torch.from_numpy(row.coeffs.copy()))

    def state(self) -> Any:
        return self.optimizer.state_dict()

    def load_state(self, state: Any) -> None:
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

    def _loss(self, batch: Batch, micro_batch_size: int | None) -> Population | Callable[[], Tensor]:
        """Returns the loss on the batch, as a population or a closure."""
        config = self._config
        # RecurrentLM's population is a kernel of the backend, that of the others a batch of members in torch.
        at_once = backend_for(batch.tokens.device.type).fused_forward or not isinstance(self.model, RecurrentLM)
        if config.distribution == "rademacher" and at_once:
            return self.model.population(*batch, micro_batch_size=micro_batch_size, precision=config.precision)
        micro_batches = _split(batch, micro_batch_size)
        return lambda: mean_loss(self.model, micro_batches)


class BPTTSolver(Solver):
    """Trains with `BPTT`, gradients by back-propagation."""

    forwards = 3
    replays = False

    def __init__(self, config: TrainConfig, model: LanguageModel, gate: InterruptGate) -> None:
        self.model = model
        self._config = config
        self._gate = gate
        self._bptt = BPTT(
            model,
            config.optimizer,
            lr=config.lr,
            weight_decay=config.weight_decay,
            micro_batch_size=config.micro_batch_size,
            checkpoint_length=config.checkpoint_length,
            max_cosine_distance=config.max_cosine_distance,
        )

    def estimate(self, batch: Batch, lr: float) -> Estimate:
        for group in self._bptt.optimizer.param_groups:
            group["lr"] = lr
        with self._gate.open():
            pass  # a step is short: it may be stopped before, not within
        loss = self._bptt.backward(*batch)
        return Estimate(torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.tensor([loss], dtype=torch.float64))

    def apply(self, estimate: Estimate) -> None:
        self._bptt.update()

    def replay(self, row: Row) -> None:
        raise NotImplementedError("the rows of back-propagation do not hold its gradients")

    def state(self) -> Any:
        return self._bptt.state_dict()

    def load_state(self, state: Any) -> None:
        self._bptt.load_state_dict(state)
        for group in self._bptt.optimizer.param_groups:
            group["weight_decay"] = self._config.weight_decay

    def start_at(self, step: int) -> None:
        pass  # its steps do not depend on their number


SOLVERS: dict[str, type[ZeroOrderSolver] | type[BPTTSolver]] = {"zo": ZeroOrderSolver, "bptt": BPTTSolver}
"""Every solver by the name of its flag."""


def lr_at(config: TrainConfig, step: int) -> float:
    """Returns the learning rate of a step, counted from 0: it falls linearly from lr to lr * lr_decay over the run."""
    return config.lr * (1 + (config.lr_decay - 1) * min(step, config.steps) / config.steps)


def mean_loss(model: LanguageModel, batches: Sequence[Batch]) -> Tensor:
    """Returns the mean loss over the scored positions of all batches: float64."""
    scored = [(batch.targets != IGNORE_INDEX).sum() for batch in batches]
    return torch.stack(
        [model.loss(*batch) * count for batch, count in zip(batches, scored, strict=True) if count > 0]
    ).sum() / sum(scored)


def _split(batch: Batch, size: int | None) -> list[Batch]:
    if size is None:
        return [batch]
    return [Batch(*parts) for parts in zip(*(x.split(size) for x in batch), strict=True)]
