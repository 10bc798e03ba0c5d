"""From losses to a seed-space gradient. An estimator is one class, and one line in `ESTIMATORS`.

estimate = ESTIMATORS["cd"]()(evaluator, seeds, eps=2**-6)  # estimate.gradient is a SeedGradient
"""

from .base import BatchPopulation, Estimate, Estimator, Evaluator, Losses, Population
from .central import CentralDifference
from .forward import AntitheticDifference, ForwardDifference
from .spsa import SPSA2, SPSA15

ESTIMATORS: dict[str, type[Estimator]] = {
    "cd": CentralDifference,
    "fd": ForwardDifference,
    "antithetic": AntitheticDifference,
    "1.5-spsa": SPSA15,
    "2-spsa": SPSA2,
}
"""Every estimator by the name that `--estimator` takes; each can be built without arguments."""

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
]
