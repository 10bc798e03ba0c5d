"""Reads from DTensors which elements of each parameter this process holds, and which processes hold the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch.distributed as dist
from torch import Tensor

from .layout import is_dtensor, local_part

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Placement:
    """The elements that this process holds, and the process groups of the mesh.

    spans: start and number of this process's elements of each parameter.
    shard_group: the processes that together hold one copy of the parameters, this one included. None: this one alone.
    replica_group: the processes that hold the same elements as this one. They may split the probes. None if there are
        no others.
    device_type: device type of the mesh.
    """

    spans: list[tuple[int, int]]
    shard_group: dist.ProcessGroup | None
    replica_group: dist.ProcessGroup | None
    device_type: str


def placement_of(named: Sequence[tuple[str, Tensor]]) -> Placement:
    """The placement of parameters, some of which are DTensors.

    Raises ValueError, naming the parameter, unless each is replicated, or sharded by rows along one mesh dimension.
    """
    first_name, first = next((name, cast("DTensor", p)) for name, p in named if is_dtensor(p))
    mesh = first.device_mesh
    sharding: dict[int, str] = {}
    for name, p in named:
        if is_dtensor(p):
            distributed = cast("DTensor", p)
            if distributed.device_mesh != mesh:
                raise ValueError(f"parameters {first_name} and {name} lie on different meshes: use one mesh for all")
            sharding.update(dict.fromkeys(_sharding_dimensions(name, distributed), name))
    if len(sharding) > 1:
        raise ValueError(
            f"parameters {' and '.join(dict.fromkeys(sharding.values()))} are sharded along several mesh dimensions: "
            "shard along one of them"
        )
    replicating = [d for d in range(mesh.ndim) if d not in sharding and mesh.size(d) > 1]
    if len(replicating) > 1:
        raise ValueError("the parameters are replicated along several mesh dimensions: use a mesh with one of them")
    return Placement(
        [_span(name, p) for name, p in named],
        mesh.get_group(next(iter(sharding))) if sharding else None,
        mesh.get_group(replicating[0]) if replicating else None,
        mesh.device_type,
    )


def _sharding_dimensions(name: str, p: DTensor) -> list[int]:
    from torch.distributed.tensor import Replicate, Shard

    for placement in p.placements:  # not isinstance: subclasses of them place elements otherwise
        if type(placement) is not Replicate and not (type(placement) is Shard and placement.dim == 0):
            raise ValueError(f"parameter {name} is placed as {placement}: only Shard(0) and Replicate are supported")
    return [d for d, placement in enumerate(p.placements) if isinstance(placement, Shard)]


def _span(name: str, p: Tensor) -> tuple[int, int]:
    local, start, rows = local_part(p), 0, p.shape[0] if p.dim() else 1
    if is_dtensor(p):
        distributed = cast("DTensor", p)
        for d in _sharding_dimensions(name, distributed):
            most = -(-rows // distributed.device_mesh.size(d))
            start = min(distributed.device_mesh.get_local_rank(d) * most, rows)
            rows = min(most, rows - start)
    width = p.numel() // p.shape[0] if p.dim() and p.shape[0] else 1
    if local.numel() != (rows * width if p.numel() else 0):
        raise ValueError(f"parameter {name} is not sharded as torch.chunk splits it: shard it with distribute_tensor")
    if not local.is_contiguous():
        raise ValueError(f"parameter {name} is not contiguous on this process: call contiguous() before it is sharded")
    return start * width, local.numel()
