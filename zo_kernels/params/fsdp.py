"""The modules that FSDP2's `fully_shard` has made of a model."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch.distributed as dist
from torch import Tensor, nn


class FSDPModule(Protocol):
    """The methods used of an FSDPModule. mypy does not know that it is an nn.Module too."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def reshard(self) -> None: ...


def resharded_modules(named: Sequence[tuple[str, Tensor]]) -> list[FSDPModule]:
    """Calls reshard() of the FSDP2 modules that have one of the parameters, and returns these modules.

    Raises ValueError if a parameter then no longer belongs to its module.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    # Looking at every object takes a tenth of a second or more. FSDP needs a process group, and classes that are
    # modules: parts of torch define others.
    if fsdp is None or not dist.is_initialized():
        return []
    if not any(issubclass(kind, nn.Module) for kind in _subclasses(fsdp.FSDPModule)):
        return []
    wanted = {p for _, p in named}
    # torch keeps no list of FSDP modules, so ask the garbage collector.
    modules = [x for x in gc.get_objects() if issubclass(type(x), fsdp.FSDPModule)]
    modules = [module for module in modules if not wanted.isdisjoint(module.parameters())]
    for module in modules:
        unsharded = set(module.parameters())
        module.reshard()
        unsharded.difference_update(module.parameters())
        for name, p in named:
            if p in unsharded:
                raise ValueError(
                    f"parameter {name} is what FSDP gathered for a forward pass: call reshard() of the model and its "
                    "FSDP submodules before model.parameters(), or build the optimizer before the first forward pass"
                )
    return modules


def _subclasses(kind: type) -> Iterator[type]:
    direct: list[type] = kind.__subclasses__()
    for subclass in direct:
        yield subclass
        yield from _subclasses(subclass)
