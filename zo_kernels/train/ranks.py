"""The processes of a run: one, or as many as torchrun starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

from ..distributed.announcements import Announcements
from ..distributed.launch import is_launched
from ..distributed.process_group import shared_store
from ..distributed.replicas import Replicas
from ..durable.share import SharedState
from .config import TrainConfig
from .solver import Solver

T = TypeVar("T")

START_TIMEOUT = 60.0
"""Seconds at least that a rank waits for others until the first step is over, whatever --timeout says: importing,
compiling and reading take long on a busy machine, and restarts would only add to the load."""


class Ranks:
    """The processes of a run. Only rank 0 opens the run folder and prints.

    rank: The rank of this process.
    count: The number of processes.
    replicas: Exchanges the losses of their solvers. None if there is one process.
    is_launched: Whether a launcher may start the processes again, with the same arguments.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.is_launched = is_launched() or "TORCHELASTIC_RUN_ID" in os.environ
        self.replicas: Replicas | None = None
        self.rank, self.count = 0, 1
        self._patience = start_timeout(config)
        if has_group():
            self.replicas = Replicas(
                split=config.split,
                balance=config.balance,
                check_every=config.check_every,
                timeout=config.timeout,
                start_timeout=self._patience,
            )
            self.rank, self.count = self.replicas.rank, self.replicas.world_size
            self._announcements = Announcements(shared_store(), self.rank, self._patience)

    def join(self, solver: Solver) -> None:
        """Divides the solver's steps among all ranks. Raises UsageError if the solver can't be divided."""
        if self.replicas is not None:
            solver.join(self.replicas)

    def broadcast(self, decide: Callable[[], Any], read: Callable[[Any], T]) -> T:
        """Calls `decide` on rank 0, and returns what `read` makes of its result, on all ranks.

        The result goes through JSON, and `read` raises ValueError for a value that it can't be. If `decide` raises,
        rank 0 raises its error and the others raise ReplicaError. They raise it too if rank 0 dies meanwhile.
        """
        if self.replicas is None:
            return read(decide())
        return self._announcements.announce(decide, read)

    def broadcast_state(self, model: Mapping[str, Tensor], solver: Any) -> tuple[dict[str, Tensor], Any]:
        """Returns rank 0's state of a model and of its solver on all ranks, as `SharedState.broadcast` does."""
        assert self.replicas is not None
        shared = SharedState(self._announcements, self.rank, self.replicas.device, self._patience)
        return shared.broadcast(model, solver)


def has_group() -> bool:
    """Whether this process is one of several of an initialized process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def start_timeout(config: TrainConfig) -> float:
    """Seconds that a rank waits for others until the first step is over."""
    return max(config.timeout, START_TIMEOUT)
