"""The parts of an optimizer: by name or as objects, refused if unknown, and evaluators of one's own."""

from __future__ import annotations

import pytest
import torch

import zo_kernels as zo
from tests.flat import flat
from tests.names import name_of
from tests.optim.small import built, closure_of
from zo_kernels.estimators import ESTIMATORS, Evaluator
from zo_kernels.optim.dense import DENSE_RULES
from zo_kernels.transforms import clip_norm, momentum


@pytest.mark.parametrize(
    ("by_name", "as_objects"),
    [
        ({"estimator": "fd"}, {"estimator": ESTIMATORS["fd"]()}),
        ({"transforms": "clip-norm:0.5"}, {"transforms": clip_norm(0.5)}),
        ({"transforms": ["clip-norm:0.5", momentum(0.9, 3)]}, {"transforms": [clip_norm(0.5), momentum(0.9, 3)]}),
        ({"dense": "adam"}, {"dense": DENSE_RULES["adam"]()}),
    ],
    ids=["estimator", "one transform", "several transforms", "dense rule"],
)
def test_parts_are_given_by_name_or_as_objects(by_name: dict[str, object], as_objects: dict[str, object]) -> None:
    (model, opt), (other, same) = built(**by_name), built(**as_objects)
    for _ in range(3):
        assert opt.step(closure_of(model)) == same.step(closure_of(other))
    assert torch.equal(flat(opt.space), flat(same.space))
    assert opt.transform_state.keys() == same.transform_state.keys()
    assert opt.state_dict()["state"][0].keys() == same.state_dict()["state"][0].keys()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimator": "central"}, ValueError, "cd, fd, antithetic, 1.5-spsa, 2-spsa"),
        ({"estimator": 3}, TypeError, "cd, fd, antithetic, 1.5-spsa, 2-spsa"),
        ({"estimator": ESTIMATORS["cd"]}, TypeError, "CentralDifference"),
        ({"transforms": "clip"}, ValueError, "clip-norm"),
        ({"transforms": 1.0}, TypeError, "clip-norm"),
        ({"transforms": clip_norm}, TypeError, "call the function that builds one"),
        ({"dense": "sgd"}, ValueError, "adam, momentum"),
        ({"dense": DENSE_RULES["adam"]}, TypeError, "Adam"),
        ({"distribution": "cauchy"}, ValueError, "rademacher"),
        ({"distribution": 2}, ValueError, "rademacher"),
        ({"distribution": ["normal"]}, ValueError, "rademacher"),
    ],
    ids=name_of,
)
def test_unknown_parts_are_refused_at_construction(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        built(**options)


class OnlyPairs(Evaluator):
    """A quadratic around a theta of its own, with nothing but what is asked of every evaluator."""

    def __init__(self, theta: torch.Tensor) -> None:
        self.theta = theta

    def pairs(self, seeds: torch.Tensor, eps: float) -> torch.Tensor:
        probes = torch.stack([zo.ops.probe(len(self.theta), seed, dtype=torch.float64) for seed in seeds.tolist()])
        points = torch.stack([self.theta + eps * probes, self.theta - eps * probes], dim=1)
        return (points**2).sum(dim=2)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_custom_evaluator_needs_pairs_only(name: str) -> None:
    theta = torch.linspace(-1, 1, 5, dtype=torch.float64)
    seeds, estimator = torch.arange(7), ESTIMATORS[name]()
    if name == "2-spsa":
        with pytest.raises(NotImplementedError, match="OnlyPairs does not implement corners"):
            estimator(OnlyPairs(theta), seeds, 2**-6)
        return
    estimate = estimator(OnlyPairs(theta), seeds, 2**-6)
    probes = torch.stack([zo.ops.probe(5, seed, dtype=torch.float64) for seed in seeds.tolist()])
    slopes = probes @ (2 * theta) + (5 * 2**-6 if name == "fd" else 0.0)
    if name != "1.5-spsa":  # divided by its curvature
        torch.testing.assert_close(estimate.coeffs, slopes / 7, rtol=1e-9, atol=1e-12)
    assert int(estimate.losses.isfinite().sum()) == estimate.losses.numel()
