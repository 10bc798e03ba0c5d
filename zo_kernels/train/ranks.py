"""The processes of a run: one, or as many as torchrun starts."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.process_group import is_launched, wait_for
from ..distributed.replicas import Replicas
from ..errors import ReplicaError, UsageError
from .config import TrainConfig
from .solvers import Solver, ZeroOrderSolver

T = TypeVar("T")

_BROADCAST_TIMEOUT = timedelta(days=1)
"""For what rank 0 does while the others wait: read the data, restore a run."""


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
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.replicas = Replicas(
                split=config.split, balance=config.balance, check_every=config.check_every, timeout=config.timeout
            )
            self._broadcast_group = dist.new_group(backend="gloo", timeout=_BROADCAST_TIMEOUT)
        self.rank = 0 if self.replicas is None else self.replicas.rank
        self.count = 1 if self.replicas is None else self.replicas.world_size

    def join(self, solver: Solver) -> None:
        """Divides the solver's steps among all ranks. Raises UsageError if the solver can't be divided."""
        if self.replicas is None:
            return
        if not isinstance(solver, ZeroOrderSolver):
            raise UsageError("back-propagation runs in one process only: start --solver bptt without torchrun")
        solver.optimizer.replicas = self.replicas

    def broadcast(self, decide: Callable[[], T]) -> T:
        """Calls `decide` on rank 0 and returns its result, anything that can be pickled, on all ranks.

        If it raises, rank 0 raises its error and the others raise ReplicaError.
        """
        if self.replicas is None:
            return decide()
        content, error = b"", None
        if self.rank == 0:
            try:
                content = pickle.dumps([decide()])
            except BaseException as raised:
                error = raised
        try:
            length = self._broadcast_tensor(torch.tensor([len(content)]), self._broadcast_group)
            if length and error is None:
                buffer = torch.frombuffer(bytearray(content or int(length)), dtype=torch.uint8)
                content = self._broadcast_tensor(buffer, self._broadcast_group).numpy().tobytes()
        finally:
            if error is not None:
                raise error
        if not content:
            raise ReplicaError("rank 0 failed: see its output")
        return pickle.loads(content)[0]

    def _broadcast_tensor(self, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        """Overwrites x with rank 0's and returns it. Raises ReplicaError if another rank has died."""
        try:
            wait_for(dist.broadcast(x, src=0, group=group, async_op=True), _BROADCAST_TIMEOUT.total_seconds(), group)
        except RuntimeError as error:
            raise ReplicaError(f"lost another rank: {str(error).splitlines()[0]}") from error
        return x

    def broadcast_state(self, state: Any) -> Any:
        """Returns rank 0's state on all ranks. It may nest mappings, lists, tensors and plain values.

        Each tensor is sent by itself, so that the state is never pickled whole.
        """
        if self.replicas is None:
            return state
        tensors: list[Tensor] = []
        form = self.broadcast(lambda: _strip_tensors(state, tensors))
        return self._receive_state(form, iter(tensors))

    def _receive_state(self, form: Any, tensors: Any) -> Any:
        if isinstance(form, _Form):
            assert self.replicas is not None
            device = self.replicas.device
            x = next(tensors).to(device) if self.rank == 0 else torch.empty(form.shape, dtype=form.dtype, device=device)
            return self._broadcast_tensor(x, None).to(form.device_type)
        if isinstance(form, dict):
            return {key: self._receive_state(value, tensors) for key, value in form.items()}
        return [self._receive_state(value, tensors) for value in form] if isinstance(form, list) else form


class _Form(NamedTuple):
    """Stands for a tensor in a state, while the tensor is sent by itself."""

    shape: torch.Size
    dtype: torch.dtype
    device_type: str


def _strip_tensors(state: Any, tensors: list[Tensor]) -> Any:
    """Replaces the tensors of a state by forms, and appends them to the list in order."""
    if isinstance(state, Tensor):
        tensors.append(state.contiguous())
        return _Form(state.shape, state.dtype, state.device.type)
    if isinstance(state, Mapping):
        return {key: _strip_tensors(value, tensors) for key, value in state.items()}
    return [_strip_tensors(value, tensors) for value in state] if isinstance(state, (list, tuple)) else state
