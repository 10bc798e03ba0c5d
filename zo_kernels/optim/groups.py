"""Parameter groups: the names of their parameters, and where they lie in the flat parameter space."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..params.layout import Arena, Segment, Slot


def name_parameters(groups: list[dict[str, Any]]) -> list[tuple[str, Tensor]]:
    """The parameters of all groups, with the names they were given with or those of their places."""
    found: list[tuple[str, Tensor]] = []
    for number, group in enumerate(groups):
        names = group.get("param_names") or [f"{i} of group {number}" for i in range(len(group["params"]))]
        found.extend(zip(names, group["params"], strict=True))
    return found


def segments_of(arena: Arena, groups: list[dict[str, Any]]) -> list[Segment]:
    """One stretch of the flat parameter space per group; groups follow each other in it."""
    segments: list[Segment] = []
    taken: set[Slot] = set()
    for number, group in enumerate(groups):
        trained = [p for p in group["params"] if p.requires_grad]
        slots = sorted({arena.slot_of(p) for p in trained}, key=lambda slot: slot.offset)
        slots = [slot for slot in slots if slot not in taken]
        if not slots:
            raise ValueError(f"parameter group {number} has no trainable parameter of its own")
        taken.update(slots)
        if segments:
            segments[-1].stop = slots[0].offset
        segments.append(Segment(slots[0].offset, len(arena), slots))
    return segments
