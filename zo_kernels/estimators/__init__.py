"""Estimators turn losses into a seed-space gradient. Each is one class, and one line in `ESTIMATORS`.

estimate = get_estimator("cd")(evaluator, seeds, eps=2**-6)  # estimate.gradient is a SeedGradient
"""

from .base import BatchPopulation, Estimate, Estimator, Evaluator, Losses, Population
from .central import CentralDifference
from .forward import AntitheticDifference, ForwardDifference
from .registry import ESTIMATORS, get_estimator
from .spsa import SPSA2, SPSA15

__all__ = [
    "ESTIMATORS",
    "SPSA2",
    "SPSA15",
    "AntitheticDifference",
    "BatchPopulation",
    "CentralDifference",
    "Estimate",
    "Estimator",
    "Evaluator",
    "ForwardDifference",
    "Losses",
    "Population",
    "get_estimator",
]
