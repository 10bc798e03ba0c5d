"""centred_rank, z_score, sign."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.cases import one
from zo_kernels.transforms import centred_rank, sign, z_score

distinct = st.lists(st.integers(-(10**6), 10**6), min_size=2, max_size=20, unique=True)


def norm(coeffs):
    return float(np.linalg.norm(coeffs))


def test_ranks_of_three():
    # Ranks -1/2, 0, 1/2 of norm 1/sqrt 2; the coefficients' norm is 5.
    assert one(centred_rank(), [4.0, 0.0, -3.0]) == pytest.approx([5 / 2**0.5, 0.0, -5 / 2**0.5])


def test_tied_ranks_are_their_mean():
    # Ranks 0, 1.5, 1.5, 3 of 4 values, centred.
    shaped = np.array(one(centred_rank(), [-1.0, 2.0, 2.0, 7.0]))
    assert shaped == pytest.approx(np.array([-0.5, 0.0, 0.0, 0.5]) * norm([-1, 2, 2, 7]) / 0.5**0.5)


@given(coeffs=distinct)
def test_ranks_are_evenly_spaced_and_keep_order_and_norm(coeffs):
    shaped = np.array(one(centred_rank(), [float(c) for c in coeffs]))
    assert np.array_equal(np.argsort(shaped), np.argsort(coeffs))
    gaps = np.diff(np.sort(shaped))
    assert gaps == pytest.approx(gaps[0])
    assert norm(shaped) == pytest.approx(norm(coeffs))
    assert shaped.max() == pytest.approx(-shaped.min())


@given(coeffs=distinct)
def test_z_scores(coeffs):
    expected = (np.array(coeffs, float) - np.mean(coeffs)) / np.std(coeffs) / len(coeffs)
    assert one(z_score(), [float(c) for c in coeffs]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("build", [centred_rank, z_score])
@pytest.mark.parametrize("coeffs", [[], [0.3], [0.1] * 7, [-1e300] * 3, [0.0, -0.0]])
def test_equal_coefficients_give_zero(build, coeffs):
    """Also where their mean is not what it should be: 7 times 0.1 is not 0.7."""
    assert one(build(), coeffs) == [0.0] * len(coeffs)


@given(coeffs=distinct, factor=st.sampled_from([1e-250, 3.0, 1e290]))
def test_z_scores_and_signs_know_no_scale(coeffs, factor):
    for build in (z_score, sign):
        scaled = one(build(), [factor * c for c in coeffs])
        assert scaled == pytest.approx(one(build(), [float(c) for c in coeffs]), rel=1e-6, abs=1e-9)


def test_signs():
    assert one(sign(), [4.0, 0.0, -3.0, 1e-300]) == [0.25, 0.0, -0.25, 0.25]
