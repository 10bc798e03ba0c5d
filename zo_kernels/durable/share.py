"""Sends the state of a model and of its solver from rank 0 to the other ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.announcements import Announcements
from ..distributed.process_group import wait_for
from ..errors import ReplicaError, first_line
from ..run.checkpoint import pack, unpack

_LEAST_SPEED = 10e6
"""Bytes per second at least at which a state is expected to arrive."""

_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)}  # fmt: skip
"""What the tensors of a state may consist of, by name."""

_MOST_STATE = 64 << 20, 16
"""Largest state of a solver that is received: so many bytes, and so many times those of the model."""


class SharedState:
    """Sends states through the default process group. Every rank calls `broadcast` the same number of times.

    announcements: those of rank 0. device: where messages are stored. patience: seconds to wait for another rank.
    """

    def __init__(self, announcements: Announcements, rank: int, device: torch.device, patience: float) -> None:
        self._announcements, self._rank, self._device, self._patience = announcements, rank, device, patience

    def broadcast(self, model: Mapping[str, Tensor], solver: Any) -> tuple[dict[str, Tensor], Any]:
        """Returns rank 0's state of a model and of its solver on all ranks.

        model: This rank's state_dict, which says what tensors to expect. solver: Rank 0's state of the solver, as a
        checkpoint holds it; not used on other ranks. Raises ReplicaError if a state of other sizes arrives.
        """
        tensors = {f"model.{name}": x for name, x in model.items()}
        own = [[name, *_form(x)] for name, x in tensors.items()]

        def describe() -> Any:
            packed = pack(solver, tensors)
            return [packed, [[name, *_form(x)] for name, x in tensors.items()]]

        packed, forms = self._announcements.announce(describe, lambda value: _read_forms(value, own))
        received = {}
        for name, dtype, shape in forms:
            if self._rank == 0:
                x = tensors[name].detach().to(self._device).contiguous()
            else:
                x = torch.empty(shape, dtype=dtype, device=self._device)
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
