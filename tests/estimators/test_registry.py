"""Estimators by name or as objects."""

import re

import pytest

from zo_kernels.estimators import ESTIMATORS, SPSA15, CentralDifference, get_estimator

NAMES = ", ".join(ESTIMATORS)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_name_is_its_estimator(name):
    estimator = get_estimator(name)
    assert type(estimator) is ESTIMATORS[name]
    assert estimator.name == name


def test_an_estimator_is_itself():
    estimator = SPSA15(saturation=0.5)
    assert get_estimator(estimator) is estimator


@pytest.mark.parametrize("name", ["magic", "", "CD"])
def test_an_unknown_name(name):
    with pytest.raises(ValueError, match=f"^unknown estimator {name!r}: choose one of {re.escape(NAMES)}$"):
        get_estimator(name)


def test_a_class_is_not_an_instance():
    with pytest.raises(TypeError, match=r"estimator is the class CentralDifference: give an instance"):
        get_estimator(CentralDifference)


@pytest.mark.parametrize("other", [None, 3, ["cd"], int, lambda: None])
def test_other_types(other):
    with pytest.raises(TypeError, match=f"must be an Estimator or one of the names {re.escape(NAMES)}, not "):
        get_estimator(other)
