"""The paper's optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..distributed.replicas import Replicas
from .zero_order import ZeroOrder


class CDRGE(ZeroOrder):
    """Central-difference random gradient estimation: Chaubard and Kochenderfer, arXiv 2505.17852.

        theta' = (1 - lr*weight_decay) theta - (lr/eps) * 1/(2n) * sum_i (L+_i - L-_i) p_i

    with n probes p_i in {-1, +1}^d. This is their eq. 7 if eps = lr and weight_decay = 0. A step evaluates 2n losses.
    `ZeroOrder` describes the arguments and the errors, and has other estimators, distributions and transforms.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float,
        *,
        eps: float | None = None,
        probes: int = 96,
        seed: int = 0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        mode: str = "auto",
        grid: float | None = None,
        replicas: Replicas | None = None,
        check_every: int = 100,
    ) -> None:
        super().__init__(
            params,
            lr,
            eps=eps,
            probes=probes,
            seed=seed,
            weight_decay=weight_decay,
            maximize=maximize,
            mode=mode,
            grid=grid,
            replicas=replicas,
            check_every=check_every,
        )
