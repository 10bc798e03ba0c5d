"""The search for a learning rate, on loss curves whose best is known."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zo_kernels.train.find_lr import search


def valley(best: float, cliff: float = math.inf) -> Callable[[float], float]:
    """Lowest at `best`, NaN from `cliff` times that on."""
    return lambda lr: math.log(lr / best) ** 2 if lr < cliff * best else math.nan


@given(st.floats(-4, 1), st.floats(0.5, 3))
def test_finds_the_best_between_the_bounds(exponent: float, cliff_decades: float) -> None:
    best = 10.0**exponent
    found = search(valley(best, 10**cliff_decades), 1e-4, 10.0)
    ratio = 10 ** (5 / 6)  # of the grid; each of two refinements halves it in the logarithm
    assert abs(math.log(found.best / best)) <= math.log(ratio) / 2 / 2**2 + 1e-9


@given(st.floats(-9, 6))
def test_goes_on_where_the_best_is_outside(exponent: float) -> None:
    best = 10.0**exponent
    found = search(valley(best), 1e-4, 10.0)
    assert len(found.tried) <= 7 + 7 + 2 * 2
    assert abs(math.log(found.best / best)) <= math.log(10 ** (5 / 6)) / 2 / 2**2 + 1e-9


def test_trials_are_the_grid_then_the_neighbours() -> None:
    found = search(valley(0.03), 0.001, 1.0, points=4, refinements=1)
    assert [lr for lr, _ in found.tried] == pytest.approx([0.001, 0.01, 0.1, 1.0, 0.01 * 0.1**0.5, 0.01 * 10**0.5])
    assert found.tried[3][0] == 1.0
    assert found.best == pytest.approx(0.01 * 10**0.5)
    assert dict(found.tried)[found.best] == min(loss for _, loss in found.tried)


@given(
    st.lists(st.one_of(st.floats(), st.just(1.0)), min_size=40, max_size=40),
    st.integers(2, 9),
    st.integers(0, 3),
    st.floats(-300, 300),
    st.floats(1e-6, 8),
)
def test_any_curve(losses: list[float], points: int, refinements: int, exponent: float, decades: float) -> None:
    """Each learning rate once, at most so many, the best is the best of them, and the same again."""

    def run() -> object:
        rest = iter(losses)
        tried: list[float] = []

        def trial(lr: float) -> float:
            assert math.isfinite(lr)
            assert lr > 0
            tried.append(lr)
            return next(rest)

        try:
            found = search(trial, 10.0**exponent, 10.0 ** (exponent + decades), points=points, refinements=refinements)
        except ValueError as error:
            return str(error)
        assert [lr for lr, _ in found.tried] == tried
        assert len(set(tried)) == len(tried) <= 2 * points + 2 * refinements
        finite = [(loss, lr) for lr, loss in found.tried if math.isfinite(loss)]
        assert found.best == min(finite)[1]
        return repr(found)

    result = run()
    assert result == run()
    assert isinstance(result, str)
    assert result.startswith("the loss of every trial") != any(map(math.isfinite, losses[:points]))


def test_bounds_without_a_number_between_them() -> None:
    tried: list[float] = []
    found = search(lambda lr: (tried.append(lr), 1.0 / lr)[1], 1.0, math.nextafter(1.0, 2.0), points=5, refinements=1)
    assert len(set(tried)) == len(tried) == len(found.tried)


def test_a_flat_curve_does_not_go_on() -> None:
    found = search(lambda lr: 1.0, 0.1, 1.0, points=3, refinements=0)
    assert [lr for lr, _ in found.tried] == pytest.approx([0.1, 0.1**0.5, 1.0])
    assert found.best == 0.1


def test_all_divergent_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"every trial is NaN or infinite, with lr from 0\.1 to 1: try lower ones"):
        search(lambda lr: math.nan if lr > 0.5 else math.inf, 0.1, 1.0)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (-1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (0.1, math.inf), (math.nan, 1.0), (0.1, math.nan)],
)
def test_bad_bounds_are_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="0 < low < high"):
        search(valley(0.1), low, high)


def test_bad_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="points must be at least 2"):
        search(valley(0.1), 0.1, 1.0, points=1)
    with pytest.raises(ValueError, match="refinements must be at least 0"):
        search(valley(0.1), 0.1, 1.0, refinements=-1)
