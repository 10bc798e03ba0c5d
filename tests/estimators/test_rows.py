"""From given losses to rows: the formulas, which probes are left out, what is refused, what it costs."""

import math

import pytest
import torch

import zo_kernels as zo
from tests.estimators.evaluators import Around, Given, Quadratic, seeds_of
from zo_kernels.errors import DivergenceError
from zo_kernels.estimators import ESTIMATORS, CentralDifference, Estimator
from zo_kernels.estimators.spsa import second_seeds
from zo_kernels.philox import probe_seeds

NAN, INF = math.nan, math.inf

# What each estimator asks for, of two probes with slopes 4 and -3 at eps 1/4, curvatures 0 and 16 (16 times its floor).
LOSSES = {
    "cd": Given(pairs=[[3.0, 1.0], [0.5, 2.0]]),
    "fd": Given(ahead=[3.0, 1.25], clean=2.0),
    "antithetic": Given(pairs=[[3.0, 1.0], [0.5, 2.0]], clean=7.0),
    "1.5-spsa": Given(pairs=[[3.0, 1.0], [1.75, 3.25]], clean=2.0),
    "2-spsa": Given(pairs=[[3.0, 1.0], [0.5, 2.0]], corners=[[[1.0, 2.0], [3.0, 4.0]], [[3.0, 1.0], [2.0, 4.0]]]),
}


def test_every_estimator_is_listed_by_its_name():
    assert list(ESTIMATORS) == list(LOSSES) == [estimator.name for estimator in ESTIMATORS.values()]
    assert all(issubclass(estimator, Estimator) for estimator in ESTIMATORS.values())


@pytest.mark.parametrize(("distribution", "s"), [("rademacher", 1.0), ("sparse-8", 0.125)])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_rows_are_the_formula(name, distribution, s):
    curvature = {"1.5-spsa": 16.0, "2-spsa": 16.0}.get(name, 1.0)
    estimate = ESTIMATORS[name]()(LOSSES[name], torch.tensor([8, 9]), 0.25, distribution)
    expected = torch.tensor([2.0, -1.5 / curvature**0.1], dtype=torch.float64) / s
    assert estimate.gradient.seeds.tolist() == [8, 9]
    assert estimate.gradient.distribution == distribution
    torch.testing.assert_close(estimate.gradient.coeffs, expected, rtol=1e-15, atol=0)
    assert estimate.skipped == 0


def test_losses_are_all_that_were_seen():
    seen = {name: ESTIMATORS[name]()(LOSSES[name], torch.tensor([8, 9]), 0.25).losses for name in ESTIMATORS}
    assert seen["cd"].tolist() == [[3.0, 1.0], [0.5, 2.0]]
    assert seen["fd"].tolist() == [3.0, 1.25, 2.0]
    assert seen["antithetic"].tolist() == [3.0, 1.0, 0.5, 2.0, 7.0]
    assert seen["1.5-spsa"].tolist() == [3.0, 1.0, 1.75, 3.25, 2.0]
    assert seen["2-spsa"].tolist() == [[3.0, 1.0, 1.0, 2.0, 3.0, 4.0], [0.5, 2.0, 3.0, 1.0, 2.0, 4.0]]
    assert all(losses.dtype == torch.float64 for losses in seen.values())


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_probes_with_a_loss_that_is_not_finite_are_left_out(name, bad):
    """Wherever it is among the probe's losses: an infinite corner must not pass for an infinite curvature."""
    loss = Quadratic()
    sound = Around(loss, loss.theta)
    seeds = seeds_of(4)

    class Spoilt(Around):
        def __init__(self, position):
            super().__init__(loss, loss.theta)
            self.left = position

        def _spoil(self, losses):
            losses = losses.clone()
            rest = losses[2].flatten()
            if 0 <= self.left < rest.numel():
                rest[self.left] = bad
                losses[2] = rest.view_as(losses[2])
            self.left -= rest.numel()
            return losses

        def pairs(self, seeds, eps):
            return self._spoil(super().pairs(seeds, eps))

        def ahead(self, seeds, eps):
            return self._spoil(super().ahead(seeds, eps))

        def corners(self, seeds, others, eps):
            return self._spoil(super().corners(seeds, others, eps))

    estimator = ESTIMATORS[name]()
    kept = torch.tensor([0, 1, 3])
    expected = estimator(sound, seeds[kept], 0.25)
    for position in range(estimator.forwards(1) - estimator.forwards(0)):
        estimate = estimator(Spoilt(position), seeds, 0.25)
        assert estimate.gradient.seeds.tolist() == seeds[kept].tolist()
        torch.testing.assert_close(estimate.gradient.coeffs, expected.gradient.coeffs, rtol=1e-14, atol=0)
        assert estimate.skipped == 1
        assert int((~estimate.losses.isfinite()).sum()) == 1


def test_a_slope_that_overflows_is_left_out():
    estimate = CentralDifference()(Given(pairs=[[1e308, -1e308], [1.0, 0.0]]), torch.tensor([1, 2]), 0.5)
    assert estimate.gradient == zo.SeedGradient([2], [1.0])
    assert estimate.skipped == 1


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_probe_left_is_divergence(name):
    given = Given(pairs=[[NAN, 1.0], [1.0, INF]], ahead=[NAN, INF], corners=[[[1.0] * 2] * 2] * 2)
    with pytest.raises(DivergenceError, match="the losses of all 2 probes are NaN or infinite"):
        ESTIMATORS[name]()(given, torch.tensor([1, 2]), 1.0)


@pytest.mark.parametrize("name", ["fd", "antithetic", "1.5-spsa"])
@pytest.mark.parametrize("clean", [NAN, -INF])
def test_a_clean_loss_that_is_not_finite_is_divergence(name, clean):
    given = Given(pairs=[[1.0, 2.0]], ahead=[1.0], clean=clean)
    with pytest.raises(DivergenceError, match="the loss at the parameters themselves is"):
        ESTIMATORS[name]()(given, torch.tensor([1]), 1.0)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_refusals(name):
    estimator, seeds = ESTIMATORS[name](), torch.tensor([1, 2])
    for eps in (0.0, -1.0, NAN, INF):
        with pytest.raises(ValueError, match="eps must be positive and finite"):
            estimator(LOSSES[name], seeds, eps)
    with pytest.raises(ValueError, match="sparse-3"):
        estimator(LOSSES[name], seeds, 1.0, "sparse-3")
    for none in (seeds[:0], seeds[None]):
        with pytest.raises(ValueError, match="seeds must be one-dimensional with at least one seed"):
            estimator(LOSSES[name], none, 1.0)
    with pytest.raises(ValueError, match=r"losses of 3 probes must have shape \(3.*\), not \(2"):
        estimator(LOSSES[name], torch.tensor([1, 2, 3]), 1.0)


def test_corners_of_another_shape_are_refused():
    given = Given(pairs=[[3.0, 1.0]], corners=[[1.0, 2.0, 3.0, 4.0]])
    with pytest.raises(ValueError, match=r"must have shape \(1, 2, 2\), not \(1, 4\)"):
        ESTIMATORS["2-spsa"]()(given, torch.tensor([1]), 1.0)


@pytest.mark.parametrize("name", ["1.5-spsa", "2-spsa"])
def test_options_out_of_range(name):
    for saturation in (-0.1, NAN, INF):
        with pytest.raises(ValueError, match="saturation must be finite and not negative"):
            ESTIMATORS[name](saturation=saturation)
    for floor in (0.0, -1.0, NAN, INF):
        with pytest.raises(ValueError, match="floor must be positive and finite"):
            ESTIMATORS[name](floor=floor)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("n", [1, 7])
def test_forwards_are_counted(name, n):
    loss = Quadratic()
    evaluate = Around(loss, loss.theta)
    ESTIMATORS[name]()(evaluate, seeds_of(n), 0.25)
    assert evaluate.evaluated == ESTIMATORS[name]().forwards(n)


def test_second_seeds_are_functions_of_the_seed_alone():
    seeds = torch.cat([seeds_of(1000), torch.tensor([0, 1, -1, 2**63 - 1, -(2**63)])])
    others = second_seeds(seeds)
    assert others[:5].tolist() == second_seeds(seeds[:5]).tolist()
    assert others[500].item() == second_seeds(seeds[500:501]).item()
    assert not bool((others == seeds).any())
    assert len(set(others.tolist()) | set(seeds.tolist())) == 2 * len(seeds)


def test_second_seeds_stay_what_they_are():
    """A journal replays them: the first is worked out from the definition, the others fix it for all 64 bits."""
    words = zo.philox.philox4x32_10([2**32 - 1, 2**32 - 1, int(zo.philox.Stream.SEEDS), 2**32 - 1], [7, 0]).tolist()
    expected = 7 ^ (words[0] | words[1] << 32 | 1)
    assert second_seeds(torch.tensor([7])).item() % 2**64 == expected
    first = torch.from_numpy(probe_seeds(0, 0, 2))
    assert second_seeds(first).tolist() == [-7356760658360814582, 8705261268399691290]
