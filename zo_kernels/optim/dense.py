"""Dense rules: Adam and momentum on a gradient that is written out, with state of the parameters' size.

`zo_kernels.transforms` has a momentum that works on the table and needs no such state.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends.pieces import Pieces
from ..gradient import SeedGradient
from ..ops.lists import accumulate_probes_list
from ..params.layout import Slot
from ..perturb import Perturbation


class DenseRule(ABC):
    """Turns gradients into descent directions.

        state = rule.init(theta)
        theta -= lr * rule.update(gradient, state, step)  # for each step

    theta is one parameter, and the gradient has its shape, dtype and device. If the parameter is sharded, both are this
    process's part of it. A rule must therefore work element by element.
    """

    @abstractmethod
    def init(self, theta: Tensor) -> dict[str, Tensor]:
        """The state before the first step: tensors like theta, by name."""

    @abstractmethod
    def update(self, gradient: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        """Writes the direction of a step, counted from 0, into `gradient` and returns it. Updates `state`."""


class Adam(DenseRule):
    """Adam, of Kingma and Ba, arXiv 1412.6980, as torch.optim.Adam computes it.

    Raises ValueError unless beta1 and beta2 are in [0, 1) and eps is positive and finite.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if not 0 <= beta < 1:
                raise ValueError(f"{name} must be in [0, 1), not {beta}")
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"eps must be positive and finite, not {eps}")
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def init(self, theta: Tensor) -> dict[str, Tensor]:
        return {"mean": torch.zeros_like(theta), "square": torch.zeros_like(theta)}

    @torch.no_grad()
    def update(self, gradient: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        mean, square = state["mean"], state["square"]
        mean.lerp_(gradient, 1 - self.beta1)
        square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        scale = torch.sqrt(square, out=gradient).div_(math.sqrt(1 - self.beta2 ** (step + 1))).add_(self.eps)
        return torch.div(mean, scale, out=gradient).div_(1 - self.beta1 ** (step + 1))


class Momentum(DenseRule):
    """Momentum as torch.optim.SGD computes it: v = beta v + gradient, and v is the direction.

    Raises ValueError unless beta is in [0, 1).
    """

    def __init__(self, beta: float = 0.9) -> None:
        if not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), not {beta}")
        self.beta = beta

    def init(self, theta: Tensor) -> dict[str, Tensor]:
        return {"velocity": torch.zeros_like(theta)}

    @torch.no_grad()
    def update(self, gradient: Tensor, state: dict[str, Tensor], step: int) -> Tensor:
        return gradient.copy_(state["velocity"].mul_(self.beta).add_(gradient))


DENSE_RULES: dict[str, type[DenseRule]] = {"adam": Adam, "momentum": Momentum}
"""Every dense rule by the name that `--dense` takes. Each can be built without arguments."""


def get_dense_rule(rule: str | DenseRule | None) -> DenseRule | None:
    """Returns the rule itself, or builds the one with this name. None, for no rule, stays None.

    Raises ValueError for an unknown name and TypeError for anything else, both with the list of names.
    """
    if rule is None or isinstance(rule, DenseRule):
        return rule
    names = ", ".join(DENSE_RULES)
    if isinstance(rule, str):
        if rule not in DENSE_RULES:
            raise ValueError(f"unknown dense rule {rule!r}: choose one of {names}")
        return DENSE_RULES[rule]()
    if isinstance(rule, type) and issubclass(rule, DenseRule):
        raise TypeError(f"dense is the class {rule.__name__}: give an instance, {rule.__name__}(...)")
    raise TypeError(f"dense must be a DenseRule, one of the names {names}, or None, not {rule!r}")


def write_gradient(gradient: SeedGradient, theta: Perturbation, scales: Sequence[float]) -> dict[Slot, Tensor]:
    """The gradient of each trained parameter, written out in theta's dtype: sum_i coeffs[i] * p(seeds[i]).

    scales: by which each group's coefficients are multiplied.
    """
    space = theta.space
    written = {
        slot: torch.zeros(x.shape, dtype=theta.theta_dtype(slot), device=x.device)
        for slot in space.trained
        for x in [space.memory(slot)]
    }
    for group, scale in zip(space.groups, scales, strict=True):

        def kernel(x: Pieces, scale: float = scale) -> None:
            accumulate_probes_list(x, scale * gradient.coeffs, gradient.seeds, gradient.distribution)

        for batch in space.batches(slot for slot in group if slot in written):
            batch.run_on(kernel, written)
    return written
