"""Puts back the buffers that forward passes change, such as BatchNorm's running statistics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Place = tuple[nn.Module, str]


class BufferKeeper:
    """Keeps the buffers of modules as they are while losses are taken.

    Statistics of BatchNorm and InstanceNorm are always put back. Other buffers are put back if the first block has
    changed them: its copies tell, and later blocks copy only these.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = list(modules)
        self._changing: list[Place] | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Context after which the buffers are what they were, bit for bit, also if it raises."""
        places = [*self._statistics(), *(self._all() if self._changing is None else self._changing)]
        before = [(place, place[0]._buffers[place[1]]) for place in dict.fromkeys(places)]
        copies = [None if x is None else x.detach().clone() for _, x in before]
        try:
            yield
        finally:
            changing = []
            for (place, x), copied in zip(before, copies, strict=True):
                module, name = place
                if module._buffers.get(name) is not x:
                    module._buffers[name] = x
                    changing.append(place)
                if x is not None and copied is not None and not _same(x, copied):
                    with torch.no_grad():
                        x.copy_(copied)
                    changing.append(place)
            if self._changing is None:
                self._changing = list(dict.fromkeys(changing))

    def _all(self) -> list[Place]:
        return [(m, name) for root in self._modules for m in root.modules() for name in m._buffers]

    def _statistics(self) -> list[Place]:
        norms = (m for root in self._modules for m in root.modules() if isinstance(m, _NormBase) and m.training)
        return [(m, name) for m in norms for name in m._buffers]


def _same(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x, y) or bool(torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num()))
