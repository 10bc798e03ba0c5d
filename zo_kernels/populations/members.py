"""Perturbed copies of a module's parameters. A member is one copy; each probe has two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..backends.pieces import Pieces
from ..ops import apply_probes
from ..ops.lists import apply_probe_list
from ..params.space import Place, find_places

Tensors = dict[str, Tensor]
"""Tensors of a module by name, each [2n, *shape] for n probes."""


class Members:
    """Makes the members of a module. Their memory is kept from call to call."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._memory: dict[Tensor, Tensor] = {}
        self._lists: dict[object, _MemberLists] = {}

    def places(self) -> dict[Tensor, Place]:
        """The parameters that are perturbed, and where. Raises ValueError if there are none."""
        places = {p: place for p, place in find_places(self._module).items() if p.numel()}
        if not places:
            raise ValueError("no parameter of the module is trained: set requires_grad, or build the optimizer on it")
        return places

    def make(self, places: Mapping[Tensor, Place], seeds: Tensor, eps: float) -> Tensors:
        """The parameters of the members at theta + eps * p(seeds[i]) and theta - eps * p(seeds[i]), in turns.

        Those of the last call are overwritten.
        """
        self._memory = {p: self._memory_of(p, len(seeds)) for p in places}
        theta = {p: place.theta.contiguous() for p, place in places.items()}
        by_kind: dict[object, list[Tensor]] = {}
        for p, x in theta.items():
            if p.device.type == "cpu":  # where apply_probes has no kernel for many probes
                by_kind.setdefault((x.dtype, p.dtype), []).append(p)
            else:
                apply_probes(x, eps, seeds, offset=places[p].offset, out=self._memory[p][: len(seeds)])
        lists = {}
        for kind, some in by_kind.items():
            pieces = Pieces([theta[p] for p in some], [places[p].offset for p in some])
            memory = [self._memory[p] for p in some]
            known = self._lists.get(kind)
            is_known = known is not None and known.is_of(memory, pieces.offsets)
            lists[kind] = known if known is not None and is_known else _MemberLists(memory, pieces.offsets)
            lists[kind].fill(pieces, seeds, eps)
        self._lists = lists
        for p, place in places.items():
            for start, stop in _gaps(place.spans, p.numel()):
                self._memory[p].flatten(2)[: len(seeds), :, start:stop] = theta[p].flatten()[start:stop]
        named = ((name, p) for name, p in self._module.named_parameters() if p in places)
        return {name: self._memory[p][: len(seeds)].flatten(0, 1) for name, p in named}

    def statistics(self, members: int) -> Tensors:
        """Copies of the buffers that norms in training mode update, which the members would share otherwise."""
        found = {}
        for path, norm in self._module.named_modules():
            if isinstance(norm, _NormBase) and norm.training and norm.track_running_stats:
                for name, buffer in norm.named_buffers(recurse=False):
                    found[f"{path}.{name}"] = buffer.expand(members, *buffer.shape).clone()
        return found

    def _memory_of(self, p: Tensor, probes: int) -> Tensor:
        """[n, 2, *shape] for at least as many probes."""
        known = self._memory.get(p)
        kind = (p.dtype, p.device, p.shape)
        if known is not None and len(known) >= probes and (known.dtype, known.device, known.shape[2:]) == kind:
            return known
        return torch.empty((probes, 2, *p.shape), dtype=p.dtype, device=p.device)


class _MemberLists:
    """For each member, the list of its parameters, for kernels that take all of them in a call.

    memory: [n, 2, *shape] of each parameter, on the CPU. offsets: of each.
    """

    def __init__(self, memory: Sequence[Tensor], offsets: tuple[int, ...]) -> None:
        self._memory, self._offsets = memory, offsets
        self._pieces: list[tuple[Pieces, Pieces]] = []

    def is_of(self, memory: Sequence[Tensor], offsets: tuple[int, ...]) -> bool:
        """Whether the members lie in this memory and have these numbers."""
        return offsets == self._offsets and all(a is b for a, b in zip(memory, self._memory, strict=True))

    def fill(self, theta: Pieces, seeds: Tensor, eps: float) -> None:
        for i in range(len(self._pieces), len(seeds)):
            plus, minus = (Pieces([x[i, sign] for x in self._memory], self._offsets) for sign in range(2))
            self._pieces.append((plus, minus))
        for (ahead, behind), seed in zip(self._pieces, seeds.tolist(), strict=False):
            apply_probe_list(theta, ahead, eps, seed, "rademacher")
            apply_probe_list(theta, behind, -eps, seed, "rademacher")


def _gaps(spans: Sequence[tuple[int, int]], numel: int) -> list[tuple[int, int]]:
    """The elements around the spans."""
    edges = [(0, 0), *spans, (numel, numel)]
    return [(stop, start) for (_, stop), (start, _) in pairwise(edges) if stop < start]
