"""Parameters sharded among processes: DTensors, as FSDP2's `fully_shard` makes them.

Each process perturbs and updates its own rows in place. A probe's value at an element depends only on the place of the
element in the whole parameter. So no process needs another's rows, and the parameters are bit for bit those of a model
that is not sharded. All processes of a shard group take losses at the same points, since FSDP gathers parameters in the
forward pass. The loss at a point is the mean over the group.

The mesh may have one dimension along which parameters are sharded by rows (`Shard(0)`), and one along which they are
replicated. Parameters that are not DTensors must be equal on all processes.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .fsdp import resharded_modules
from .layout import is_dtensor
from .placement import placement_of


class Shards:
    """The processes that hold the shards of parameters. Use `of` to find them.

    shard_group: the processes that together hold one copy of the parameters, this one included; None if it is alone.
    replica_group: the processes that hold the same elements as this one. They may split the probes. None if there are
        no others.
    spans: start and number of this process's elements of each parameter.
    """

    def __init__(self, named: Sequence[tuple[str, Tensor]]) -> None:
        modules = resharded_modules(named)
        place = placement_of(named)
        self.shard_group, self.replica_group, self.spans = place.shard_group, place.replica_group, place.spans
        self._message_device = torch.device(place.device_type)
        ours = {id(p) for _, p in named}
        self._modules = [(weakref.ref(module), {id(p) for p in module.parameters()} & ours) for module in modules]

    @staticmethod
    def of(named: Sequence[tuple[str, Tensor]]) -> Shards | None:
        """The shards of trainable parameters, given with their names; None if none of them is a DTensor.

        Raises ValueError, naming the parameter, for a placement that is not supported, if a parameter is an unsharded
        copy made by FSDP, which training would not change, and if FSDP shards only frozen parameters of a module that
        has trainable ones.
        """
        if any(is_dtensor(p) for _, p in named):
            return Shards(named)
        if resharded_modules(named):  # processes would take different forwards, but FSDP needs all of them in each
            raise ValueError(
                f"FSDP shards the module of parameter {named[0][0]}, but no trainable parameter: shard one of them"
            )
        return None

    def check(self) -> None:
        """Frees what FSDP has gathered. Raises RuntimeError if it then still holds unsharded parameters."""
        self.reshard()
        for reference, managed in self._modules:
            module = reference()
            if module is not None and not managed <= {id(p) for p in module.parameters()}:
                raise RuntimeError(
                    "FSDP holds unsharded parameters, as after a forward pass that raised, and would not see their "
                    "update: call reset_iter_state() of the root module, or build the model anew"
                )

    def reshard(self) -> None:
        """Frees the parameters that FSDP has gathered: after a change, forward passes would still use them."""
        for reference, _ in self._modules:
            module = reference()
            if module is not None:
                module.reshard()

    def mean(self, losses: Tensor) -> Tensor:
        """The mean over the shard group: float64 on the CPU, the same bits on all processes."""
        if self.shard_group is None:
            return losses
        mine = losses.to(self._message_device, torch.float64)
        received = [torch.empty_like(mine) for _ in range(dist.get_world_size(self.shard_group))]
        dist.all_gather(received, mine, group=self.shard_group)
        first, *others = (reply.cpu() for reply in received)
        apart = torch.zeros_like(first)
        for reply in others:
            apart += reply - first
        return first + apart / len(received)  # exact where all are equal

    def largest(self, found: Sequence[float]) -> list[float]:
        """The largest of each of these magnitudes over the shard group."""
        if self.shard_group is None:
            return list(found)
        finite = [value if value < float("inf") else float("inf") for value in found]  # MAX may lose a NaN
        message = torch.tensor(finite, dtype=torch.float64, device=self._message_device)
        dist.all_reduce(message, dist.ReduceOp.MAX, group=self.shard_group)
        return message.tolist()

    def sum(self, count: int) -> int:
        """The sum over the shard group."""
        if self.shard_group is None:
            return count
        message = torch.tensor(count, dtype=torch.int64, device=self._message_device)
        dist.all_reduce(message, group=self.shard_group)
        return int(message)
