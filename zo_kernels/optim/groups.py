"""Parameter groups: the names of their parameters, and their hyper-parameters at a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


def name_parameters(groups: Sequence[dict[str, Any]], first: int = 0) -> list[list[tuple[str, Tensor]]]:
    """The parameters of each group, with the names they were given with or those of their places.

    first: number of the first group.
    """
    named = []
    for number, group in enumerate(groups, first):
        names = group.get("param_names") or [f"{i} of group {number}" for i in range(len(group["params"]))]
        named.append(list(zip(names, group["params"], strict=True)))
    return named


@dataclass(frozen=True)
class HyperParameters:
    """Hyper-parameters of a group at one step. eps is 0 only if it is tied to an lr of 0."""

    lr: float
    eps: float
    weight_decay: float
    sign: float
    """1 if losses are minimised, -1 if they are maximised."""


def hyper_parameters(group: dict[str, Any]) -> HyperParameters:
    """Reads and checks the hyper-parameters of a group, which a scheduler or a user may have changed."""
    lr = float(group["lr"])
    eps = lr if group["eps"] is None else float(group["eps"])
    weight_decay = float(group["weight_decay"])
    if not (math.isfinite(lr) and lr >= 0):
        raise ValueError(f"lr must be finite and not negative, not {lr}")
    if not (math.isfinite(eps) and eps >= 0 and (eps > 0 or group["eps"] is None)):
        raise ValueError(f"eps must be positive and finite, not {eps}")
    if not (weight_decay >= 0 and lr * weight_decay <= 1):
        raise ValueError(f"weight_decay must be in [0, 1/lr], not {weight_decay}")
    return HyperParameters(lr, eps, weight_decay, -1.0 if group.get("maximize") else 1.0)


def reference_eps(eps: Sequence[float]) -> float:
    """Returns the eps that slopes refer to: that of the first group with an eps above 0, or 0 if there is none."""
    return next((e for e in eps if e > 0), 0.0)
