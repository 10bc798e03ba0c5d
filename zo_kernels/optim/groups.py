"""Parameter groups: their hyper-parameters, and where they lie in the flat parameter space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..params.layout import Arena, Segment, Slot


@dataclass(frozen=True)
class HyperParameters:
    """Of one group, at one step. eps is 0 only where it is tied to an lr of 0."""

    lr: float
    eps: float
    weight_decay: float


def hyper_parameters(group: dict[str, Any]) -> HyperParameters:
    """A group's, checked: a scheduler or a user may have changed them since the last step."""
    lr = float(group["lr"])
    eps = lr if group["eps"] is None else float(group["eps"])
    weight_decay = float(group["weight_decay"])
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr must be finite and not negative, not {lr}")
    if not (math.isfinite(eps) and eps >= 0 and (eps > 0 or group["eps"] is None)):
        raise ValueError(f"eps must be positive and finite, not {eps}")
    if not (weight_decay >= 0 and lr * weight_decay <= 1):
        raise ValueError(f"weight_decay must be in [0, 1/lr], not {weight_decay}")
    return HyperParameters(lr, eps, weight_decay)


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
