"""The processes of a run: one, or as many as torchrun starts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.announcements import Announcements
from ..distributed.launch import is_launched
from ..distributed.process_group import shared_store, wait_for
from ..distributed.replicas import Replicas
from ..errors import ReplicaError, UsageError, first_line
from ..run.checkpoint import pack, unpack
from .config import TrainConfig
from .solvers import Solver, ZeroOrderSolver

T = TypeVar("T")

START_TIMEOUT = 60.0
"""Seconds at least that a rank waits for others until the first step is over, whatever --timeout says: importing,
compiling and reading take long on a busy machine, and restarts would only add to the load."""

_LEAST_SPEED = 10e6
"""Bytes per second at least at which a state is expected to arrive."""

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)}  # fmt: skip
"""What the tensors of a state may consist of, by name."""

_MOST_STATE = 64 << 20, 16
"""Largest state of a solver that is received: so many bytes, and so many times those of the model."""


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
        if self.replicas is None:
            return
        if not isinstance(solver, ZeroOrderSolver):
            raise UsageError("back-propagation runs in one process only: start --solver bptt without torchrun")
        solver.optimizer.replicas = self.replicas

    def broadcast(self, decide: Callable[[], Any], read: Callable[[Any], T]) -> T:
        """Calls `decide` on rank 0, and returns what `read` makes of its result, on all ranks.

        The result goes through JSON, and `read` raises ValueError for a value that it can't be. If `decide` raises,
        rank 0 raises its error and the others raise ReplicaError. They raise it too if rank 0 dies meanwhile.
        """
        if self.replicas is None:
            return read(decide())
        return self._announcements.announce(decide, read)

    def broadcast_state(self, model: Mapping[str, Tensor], solver: Any) -> tuple[dict[str, Tensor], Any]:
        """Returns rank 0's state of a model and of its solver on all ranks.

        model: This rank's state_dict, which says what tensors to expect. solver: Rank 0's state of the solver, as a
        checkpoint holds it; not used on other ranks. Raises ReplicaError if a state of other sizes arrives.
        """
        assert self.replicas is not None
        tensors = {f"model.{name}": x for name, x in model.items()}
        own = [[name, *_form(x)] for name, x in tensors.items()]

        def describe() -> Any:
            packed = pack(solver, tensors)
            return [packed, [[name, *_form(x)] for name, x in tensors.items()]]

        packed, forms = self.broadcast(describe, lambda value: _read_forms(value, own))
        device = self.replicas.device
        received = {}
        for name, dtype, shape in forms:
            if self.rank == 0:
                x = tensors[name].detach().to(device).contiguous()
            else:
                x = torch.empty(shape, dtype=dtype, device=device)
            received[name] = self._broadcast_tensor(x)
        try:
            state = unpack(packed, received)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ReplicaError("rank 0 sent the state of another solver") from error
        return {name: received[f"model.{name}"] for name in model}, state

    def _broadcast_tensor(self, x: Tensor) -> Tensor:
        """Overwrites x with rank 0's and returns it. Raises ReplicaError if another rank has died."""
        options = dist.BroadcastOptions()
        options.rootRank = 0
        seconds = self._patience + x.numel() * x.element_size() / _LEAST_SPEED
        options.timeout = timedelta(seconds=2 * seconds)  # so that the process can exit: gloo waits for its operations
        group = dist.group.WORLD
        assert group is not None
        try:
            wait_for(group.broadcast([x], options), seconds)
        except RuntimeError as error:
            raise ReplicaError(f"lost another rank: {first_line(error)}") from error
        return x


def has_group() -> bool:
    """Whether this process is one of several of an initialized process group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def start_timeout(config: TrainConfig) -> float:
    """Seconds that a rank waits for others until the first step is over."""
    return max(config.timeout, START_TIMEOUT)


def _form(x: Tensor) -> tuple[str, list[int]]:
    return str(x.dtype).removeprefix("torch."), list(x.shape)


def _read_forms(value: Any, own: list[list[Any]]) -> tuple[Any, list[tuple[str, torch.dtype, list[int]]]]:
    """Reads what rank 0 says of a state: the solver's without its tensors, and name, dtype and shape of each tensor.

    own: Those of the model on this rank, which come first. Raises ValueError for anything else, before memory is used.
    """
    match value:
        case [packed, [*forms]] if forms[: len(own)] == own:
            pass
        case _:
            raise ValueError("the model of rank 0 has other parameters")
    found, total = [], 0
    for form in forms:
        match form:
            case [str(name), str(dtype), [*shape]] if dtype in _DTYPES and all(
                type(size) is int and size >= 0 for size in shape
            ):
                found.append((name, _DTYPES[dtype], shape))
                total += math.prod(shape) * _DTYPES[dtype].itemsize
            case _:
                raise ValueError("a tensor is of no known form")
    of_model = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in found[: len(own)])
    if total - of_model > _MOST_STATE[0] + _MOST_STATE[1] * of_model:
        raise ValueError(f"the state of the solver would have {total - of_model} bytes")
    return packed, found
