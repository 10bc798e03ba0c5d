"""The base class of solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from ..distributed.replicas import Replicas, digest
from ..errors import UsageError
from ..estimators import Estimate
from ..interrupts import InterruptGate
from ..models import LanguageModel
from ..models.language import States
from ..run.journal import Row
from ..tasks import Batch
from .config import TrainConfig

_STATES = "carried_states"
"""Key of the states in a solver's state."""


class Solver(ABC):
    """Trains a model step by step.

    name: that of its flag.
    forwards: forward passes of a step. The backward pass of back-propagation counts as two.
    replays: whether a step can be repeated from its row in the journal.
    states: for a stateful run, the states that the next step starts from; else None. They are those of the unperturbed
        model: each step carries them on with the parameters before its update.
    """

    name: ClassVar[str]
    model: LanguageModel
    forwards: int
    replays: bool
    states: States | None = None

    def __init__(self, config: TrainConfig, model: LanguageModel, gate: InterruptGate) -> None:
        self.model = model
        self._config = config
        self._gate = gate
        self._states_after: States | None = None
        self.forget()

    def forget(self) -> None:
        """Makes the next step of a stateful run start from the initial states."""
        if self._config.stateful:
            states = self.model.initial_states(self._config.batch_size)
            self.states = tuple(state.detach().to(self.model.wide_dtype) for state in states)

    def _read(self, batch: Batch) -> None:
        """Carries the states of a stateful run over the batch; `_go_on` then makes them those of the next step."""
        if self.states is None:
            return
        parts = []
        micro_batches = split(batch, self._config.micro_batch_size)
        starts = self.model.split_states(self.states, [len(part.tokens) for part in micro_batches])
        for part, start in zip(micro_batches, starts, strict=True):
            with self._gate.open():
                parts.append(self.model.next_logits(part.tokens, start)[1])
        self._states_after = tuple(torch.cat(each, self.model.batch_dim) for each in zip(*parts, strict=True))

    def _go_on(self) -> None:
        if self.states is not None:
            self.states = self._states_after

    def join(self, replicas: Replicas) -> None:
        """Divides each step among all replicas. Raises UsageError if the solver can't."""
        raise UsageError(f"--solver {self.name} runs in one process only: start it without torchrun")

    def digest(self) -> int:
        """64 bits that tell the parameters from others, for replicas to compare."""
        return digest(*self.model.parameters())

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

    def replay(self, row: Row, batch: Batch | None) -> None:
        """Repeats the step of a journal row, bit for bit, if the solver `replays`.

        batch: that of the step, to carry the states of a stateful run over; None leaves them where they are.
        """
        if batch is not None:
            self._read(batch)
        self._replay(row)
        if batch is not None:
            self._go_on()

    @abstractmethod
    def _replay(self, row: Row) -> None:
        """Repeats the update of a journal row."""

    def state(self) -> Any:
        """Returns all that the next step depends on besides the model's state_dict, as `save_checkpoint` takes it."""
        state = self._optimizer_state()
        return state if self.states is None else {**state, _STATES: list(self.states)}

    def load_state(self, state: Any) -> None:
        """Restores a `state`, after the model's state_dict. Hyper-parameters remain those of the config.

        Raises ValueError, changing nothing, if it is another solver's.
        """
        self._load_optimizer_state({key: value for key, value in state.items() if key != _STATES})
        if self.states is not None:
            device = self.model.device
            self.states = tuple(each.to(device) for each in state.get(_STATES, self.states))

    @abstractmethod
    def _optimizer_state(self) -> dict[str, Any]:
        """The state of the optimizer."""

    @abstractmethod
    def _load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Restores the state of the optimizer. Raises as `load_state` does."""

    @abstractmethod
    def start_at(self, step: int) -> None:
        """Numbers the next step, where there is no state to restore."""


def split(batch: Batch, size: int | None) -> list[Batch]:
    """Returns the micro-batches of a batch; None leaves it whole."""
    if size is None:
        return [batch]
    return [Batch(*parts) for parts in zip(*(x.split(size) for x in batch), strict=True)]
