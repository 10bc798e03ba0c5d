"""Puts back the buffers that forward passes change, such as BatchNorm's running statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

_logger = logging.getLogger("zo_kernels")

Place = tuple[nn.Module, str]


@dataclass
class Kept:
    """A buffer as it was before a block. copied: its values, where they were copied."""

    place: Place
    buffer: Tensor | None
    version: int | None
    copied: Tensor | None


class BufferKeeper:
    """Keeps the buffers of modules as they are while losses are taken.

    The first block copies all buffers and finds out which of them change. Later blocks copy only these, and the
    statistics of BatchNorm and InstanceNorm in training mode. If another buffer is written later, the values from
    before are lost: a warning names it, and the next block copies it. A buffer that is replaced by another tensor is
    always put back, since the module's own one is still there.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules: list[nn.Module] = []
        self._known: set[Place] = set()
        self._changing: set[Place] = set()
        self.add(modules)

    def add(self, modules: Sequence[nn.Module]) -> None:
        """Keeps the buffers of further modules."""
        self._modules.extend(modules)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Context after which the buffers are what they were, bit for bit, also if it raises."""
        before = [self._keep(place) for place in self._places()]
        try:
            yield
        finally:
            for kept in before:
                self._put_back(kept)
        self._known.update(kept.place for kept in before)  # unless a block was cut short: it may have changed few

    def _places(self) -> list[Place]:
        found = ((m, name) for root in self._modules for m in root.modules() for name in m._buffers)
        return list(dict.fromkeys(found))

    def _keep(self, place: Place) -> Kept:
        module, name = place
        buffer = module._buffers[name]
        is_statistic = isinstance(module, _NormBase) and module.training
        copies = is_statistic or place in self._changing or place not in self._known
        copied = buffer.detach().clone() if copies and buffer is not None else None
        return Kept(place, buffer, _version(buffer), copied)

    def _put_back(self, kept: Kept) -> None:
        module, name = kept.place
        if module._buffers.get(name) is not kept.buffer:
            module._buffers[name] = kept.buffer
        if kept.buffer is None:
            return
        is_written = _version(kept.buffer) != kept.version
        if kept.copied is None:
            if is_written:
                self._changing.add(kept.place)
                _logger.warning(
                    "buffer %s was written in a step for the first time, after the first step, and could not be put "
                    "back: from the next step on it will be",
                    self._name(kept.place),
                )
        elif is_written or not _same(kept.buffer, kept.copied):  # writes to .data do not count as a version
            with torch.no_grad():
                kept.buffer.copy_(kept.copied)
            self._changing.add(kept.place)

    def _name(self, place: Place) -> str:
        module, name = place
        paths = (path for root in self._modules for path, other in root.named_modules() if other is module)
        return ".".join(part for part in (next(paths, ""), name) if part)


def _version(buffer: Tensor | None) -> int | None:
    """Number of writes; None where it is not counted."""
    return None if buffer is None or buffer.is_inference() else buffer._version


def _same(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x, y) or bool(torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num()))
