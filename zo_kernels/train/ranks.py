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

from ..distributed.process_group import finish, is_launched
from ..distributed.replicas import Replicas
from ..errors import ReplicaError, UsageError
from .config import TrainConfig
from .solvers import Solver, ZeroOrderSolver

T = TypeVar("T")

_LONGEST_ANSWER = timedelta(days=1)
"""What rank 0 may take to read its data and restore a run, while the others wait."""


class Ranks:
    """The processes of a run. Rank 0 alone has its folder, and says what there is to say.

    rank: of this process. count: of all. replicas: what their solvers exchange losses by; None if there is one process.
    is_launched: whether a launcher may start them again, with the same arguments.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.is_launched = is_launched() or "TORCHELASTIC_RUN_ID" in os.environ
        self.replicas: Replicas | None = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            self.replicas = Replicas(
                split=config.split, balance=config.balance, check_every=config.check_every, timeout=config.timeout
            )
            self._answers = dist.new_group(backend="gloo", timeout=_LONGEST_ANSWER)
        self.rank = 0 if self.replicas is None else self.replicas.rank
        self.count = 1 if self.replicas is None else self.replicas.world_size

    def join(self, solver: Solver) -> None:
        """Makes the solver's steps those of all ranks."""
        if self.replicas is None:
            return
        if not isinstance(solver, ZeroOrderSolver):
            raise UsageError("back-propagation is not shared among processes: start it as one")
        solver.optimizer.replicas = self.replicas

    def broadcast(self, decide: Callable[[], T]) -> T:
        """What `decide` returns on rank 0, which alone calls it: anything that can be pickled.

        If it raises, all raise: rank 0 its error, the others ReplicaError.
        """
        if self.replicas is None:
            return decide()
        answer, error = b"", None
        if self.rank == 0:
            try:
                answer = pickle.dumps([decide()])
            except BaseException as raised:
                error = raised
        try:
            length = self._broadcast_tensor(torch.tensor([len(answer)]), self._answers)
            if length and error is None:
                content = torch.frombuffer(bytearray(answer or int(length)), dtype=torch.uint8)
                answer = self._broadcast_tensor(content, self._answers).numpy().tobytes()
        finally:
            if error is not None:
                raise error
        if not answer:
            raise ReplicaError("rank 0 could not go on: its own output says why")
        return pickle.loads(answer)[0]

    def _broadcast_tensor(self, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        """Rank 0's tensor, in place of those of its kind on the others. Raises ReplicaError if another rank is gone."""
        try:
            finish(dist.broadcast(x, src=0, group=group, async_op=True), _LONGEST_ANSWER.total_seconds(), group)
        except RuntimeError as error:
            raise ReplicaError(f"lost another rank: {str(error).splitlines()[0]}") from error
        return x

    def broadcast_state(self, state: Any) -> Any:
        """Rank 0's state on all ranks, tensor by tensor: any nesting of mappings, lists, tensors and plain values."""
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
    """What stands for a tensor that is sent by itself."""

    shape: torch.Size
    dtype: torch.dtype
    device_type: str


def _strip_tensors(state: Any, tensors: list[Tensor]) -> Any:
    """The state with forms for its tensors, which are added to the list in their order."""
    if isinstance(state, Tensor):
        tensors.append(state.contiguous())
        return _Form(state.shape, state.dtype, state.device.type)
    if isinstance(state, Mapping):
        return {key: _strip_tensors(value, tensors) for key, value in state.items()}
    return [_strip_tensors(value, tensors) for value in state] if isinstance(state, (list, tuple)) else state
