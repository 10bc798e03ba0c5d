"""Estimators by the names of the command line."""

from __future__ import annotations

from ..extensions import call, entry_names, find_class
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

_GROUP = "zo_kernels.estimators"


def get_estimator(estimator: str | Estimator) -> Estimator:
    """Returns the estimator itself, or builds the one with this name.

    The name is one of ESTIMATORS, of an entry point of the group zo_kernels.estimators, or package.module:Class.

    Raises ValueError for a name that is unknown or can't be imported, and TypeError for anything else. Both have the
    list of names.
    """
    if isinstance(estimator, Estimator):
        return estimator
    names = ", ".join(ESTIMATORS)
    if isinstance(estimator, str):
        found = ESTIMATORS.get(estimator) or find_class(estimator, Estimator, _GROUP)
        if found is None:
            known = ", ".join([*ESTIMATORS, *entry_names(_GROUP)])
            raise ValueError(f"unknown estimator {estimator!r}: choose one of {known}")
        return call(estimator, found)
    if isinstance(estimator, type) and issubclass(estimator, Estimator):
        raise TypeError(f"estimator is the class {estimator.__name__}: give an instance, {estimator.__name__}(...)")
    raise TypeError(f"estimator must be an Estimator or one of the names {names}, not {estimator!r}")
