"""What an optimizer learns from the module that its parameters belong to."""

from __future__ import annotations

from collections.abc import Iterable
from types import GeneratorType
from typing import Any

from torch import Tensor, nn


class NamedParameters(list[tuple[str, Tensor]]):
    """Some of a module's parameters with their names, as "params" of a group: the module stays known."""

    def __init__(self, named: Iterable[tuple[str, Tensor]], module: nn.Module) -> None:
        super().__init__(named)
        self.module = module


_OF_MODULES = (nn.Module.parameters.__code__, nn.Module.named_parameters.__code__)


def find_modules(params: nn.Module | Iterable[Any]) -> list[nn.Module]:
    """The modules that parameters are known to belong to.

    params: a module, what module.parameters() or module.named_parameters() has just returned, or parameter groups with
        these or `NamedParameters` as "params". From a list of parameters the module can't be known.
    """
    if isinstance(params, nn.Module):
        return [params]
    if isinstance(params, NamedParameters):
        return [params.module]
    if isinstance(params, GeneratorType):
        owner = params.gi_frame.f_locals.get("self") if params.gi_code in _OF_MODULES and params.gi_frame else None
        return [owner] if isinstance(owner, nn.Module) else []
    if isinstance(params, (list, tuple)):
        return [m for group in params if isinstance(group, dict) for m in find_modules(group.get("params", ()))]
    return []


def padding_rows(modules: Iterable[nn.Module]) -> dict[Tensor, int]:
    """The row of each embedding's weight that stands for padding and is not trained."""
    return {
        embedding.weight: embedding.padding_idx
        for module in modules
        for embedding in module.modules()
        if isinstance(embedding, (nn.Embedding, nn.EmbeddingBag)) and embedding.padding_idx is not None
    }
