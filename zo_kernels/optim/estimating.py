"""A step's estimate: of one loss, or of several micro-batches' that agree; on one process, or shared among replicas."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..distributed.replicas import Replicas
from ..errors import DivergenceError
from ..estimators import Estimate, Estimator, Evaluator, Population
from ..gradient import SeedGradient
from ..params.sharded import ShardedArena
from ..perturb import Perturbation
from ..transforms.agreement import agree
from .evaluators import Closure, ClosureEvaluator, PopulationEvaluator
from .sharded import ShardedClosureEvaluator
from .shared import SharedEvaluator


def estimated(
    closure: Closure | Population | Sequence[Closure | Population],
    estimator: Estimator,
    theta: Perturbation,
    seeds: Tensor,
    eps: Sequence[float],
    *,
    max_cosine_distance: float | None,
    replicas: Replicas | None,
) -> Estimate:
    """The estimate along the probes of seeds [n]; the parameters are left where the last loss was taken.

    Raises ValueError if `closure` is a sequence without a max_cosine_distance, or none with one, or a population of
    sharded parameters, and as the estimator does.
    """

    def one(loss: Closure | Population) -> Estimate:
        evaluator: Evaluator
        if isinstance(theta.arena, ShardedArena):
            if isinstance(loss, Population):
                raise ValueError("a population reads whole parameters, but these are sharded: pass a closure")
            evaluator = ShardedClosureEvaluator(loss, theta, eps, theta.arena)
        else:
            kind = PopulationEvaluator if isinstance(loss, Population) else ClosureEvaluator
            evaluator = kind(loss, theta, eps)  # type: ignore[arg-type]
        if replicas is not None:
            evaluator = SharedEvaluator(evaluator, replicas)
        return estimator(evaluator, seeds, eps[0], theta.distribution)

    if max_cosine_distance is None:
        if isinstance(closure, Sequence):
            raise ValueError("a sequence of closures is for optimizers with max_cosine_distance: pass one closure")
        return one(closure)
    if not isinstance(closure, Sequence) or not closure:
        raise ValueError("with max_cosine_distance, step takes a sequence of closures, one per micro-batch")
    return _agreed([one(loss) for loss in closure], seeds, theta.distribution, max_cosine_distance)


def _agreed(estimates: Sequence[Estimate], seeds: Tensor, distribution: str, max_cosine_distance: float) -> Estimate:
    """The mean of the micro-batches' estimates that agree, along the probes that all of them have."""
    shared = torch.stack([torch.isin(seeds, e.gradient.seeds) for e in estimates]).all(dim=0)
    if not bool(shared.any()):
        raise DivergenceError("no probe has finite losses on all micro-batches: lower lr or eps, or check the loss")
    rows = seeds[shared]
    micro = torch.stack(  # each is a mean over all probes of its own
        [e.gradient.coeffs[torch.isin(e.gradient.seeds, rows)] * len(e.gradient) / len(rows) for e in estimates]
    )
    mean, _ = agree(micro, max_cosine_distance)
    gradient = SeedGradient(rows, mean, distribution)
    return Estimate(gradient, torch.stack([e.losses for e in estimates]), len(seeds) - len(rows))
