"""The flat parameter space: names, sizes and numbers of the parameters' elements.

It numbers the elements of all trainable parameters in `named_parameters()` order, each tensor starting at a multiple of
128, its offset. It is an index space, not memory: every parameter keeps its own storage. A probe's value at an element
depends only on (seed, number of the element).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..backends.base import DTYPES
from ..philox import BLOCK_SIGNS

NOTHING_TO_TRAIN = "there is nothing to train: no parameter has requires_grad=True"


@dataclass(frozen=True, eq=False)
class Slot:
    """The numbers of one parameter: element i of it, in row-major order, is element offset + i of the space.

    Slots are compared by identity, since dictionaries of them are looked at many times a step.
    """

    name: str
    offset: int
    numel: int
    shape: torch.Size


def next_offset(slot: Slot) -> int:
    """The first multiple of 128 after a slot."""
    return slot.offset + -(-slot.numel // BLOCK_SIGNS) * BLOCK_SIGNS


def slots_of(named: Iterable[tuple[str, Tensor]], offset: int = 0) -> list[Slot]:
    """The slots of parameters in flat order, the first of them at `offset`."""
    slots = []
    for name, p in named:
        slots.append(Slot(name, offset, p.numel(), p.shape))
        offset = next_offset(slots[-1])
    return slots


def named_parameters(params: nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Parameters with their names, or with their positions if they have no names."""
    if isinstance(params, nn.Module):
        return list(params.named_parameters())
    return [p if isinstance(p, tuple) else (f"parameter {i}", p) for i, p in enumerate(params)]


def group_by_memory(named: Sequence[tuple[str, Tensor]]) -> list[tuple[str, list[Tensor]]]:
    """Groups parameters, in order, with those that have exactly the same memory, which get one slot.

    Raises ValueError if two of them overlap in memory otherwise, and what `check_trainable` raises.
    """
    found: dict[tuple[int, torch.Size, tuple[int, ...]] | int, tuple[str, list[Tensor]]] = {}
    spans: list[tuple[int, int, str]] = []
    for name, p in named:
        check_trainable(name, p)
        memory = local_part(p)
        # DTensors are not tied by memory: a process without elements of them would not notice.
        shareable = memory.numel() and not is_dtensor(p)
        key = (memory.data_ptr(), p.shape, memory.stride()) if shareable else id(p)
        if key in found:
            if not any(p is known for known in found[key][1]):
                found[key][1].append(p)
            continue
        found[key] = (name, [p])
        if memory.numel():
            extent = 1 + sum((n - 1) * s for n, s in zip(memory.shape, memory.stride(), strict=True))
            spans.append((memory.data_ptr(), memory.data_ptr() + extent * memory.element_size(), name))
    for (_, end, name), (start, _, other) in pairwise(sorted(spans)):
        if start < end:
            raise ValueError(f"parameters {name} and {other} overlap in memory: share a whole parameter or none of it")
    return list(found.values())


def check_trainable(name: str, p: Tensor) -> None:
    """Raises ValueError, or TypeError for a dtype without kernels, if a parameter can't be trained where it is."""
    if p.is_meta:
        raise ValueError(
            f"parameter {name} is on the meta device and holds no numbers (not yet loaded, or offloaded by "
            "accelerate): load the model onto its device before building the optimizer"
        )
    if p.dtype not in DTYPES:
        quantized = " (quantized?)" if not p.dtype.is_floating_point else ""
        raise TypeError(
            f"parameter {name} has dtype {p.dtype}{quantized}; zo_kernels trains {', '.join(map(str, DTYPES))}: freeze "
            "it with requires_grad_(False), or convert it"
        )
    memory = local_part(p)
    if memory.layout != torch.strided or type(memory).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise TypeError(
            f"parameter {name} is a {type(memory).__name__} of layout {memory.layout}, not plain numbers in memory: "
            "freeze it with requires_grad_(False), and train an adapter beside it"
        )


def is_dtensor(x: object) -> bool:
    """Whether x is a DTensor.

    Does not import torch.distributed.tensor, whose import takes half as long as that of torch itself.
    """
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def local_part(parameter: Tensor) -> Tensor:
    """This process's elements of a parameter: a tensor that shares the parameter's memory."""
    if is_dtensor(parameter):
        local: Tensor = parameter._local_tensor  # type: ignore[attr-defined]  # to_local() takes ten times as long
        return local
    return parameter
