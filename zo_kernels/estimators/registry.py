"""Estimators by the names of the command line."""

from __future__ import annotations

from ..extensions import call, find_class
from .base import Estimator
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
"""Every estimator by the name that `--estimator` takes. Each can be built without arguments."""


def get_estimator(estimator: str | Estimator) -> Estimator:
    """Returns the estimator itself, or builds the one with this name, which may be package.module:Class.

    Raises ValueError for a name that is unknown or can't be imported, and TypeError for anything else. Both have the
    list of names.
    """
    if isinstance(estimator, Estimator):
        return estimator
    names = ", ".join(ESTIMATORS)
    if isinstance(estimator, str):
        found = ESTIMATORS.get(estimator) or find_class(estimator, Estimator)
        if found is None:
            raise ValueError(f"unknown estimator {estimator!r}: choose one of {names}")
        return call(estimator, found)
    if isinstance(estimator, type) and issubclass(estimator, Estimator):
        raise TypeError(f"estimator is the class {estimator.__name__}: give an instance, {estimator.__name__}(...)")
    raise TypeError(f"estimator must be an Estimator or one of the names {names}, not {estimator!r}")
