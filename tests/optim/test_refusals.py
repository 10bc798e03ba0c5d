"""Bad input: one precise error, and theta as it was."""

import itertools
import math

import pytest
import torch
from torch import nn

import zo_kernels as zo
from tests.flat import flat


def one(**options):
    return zo.optim.CDRGE([nn.Parameter(torch.zeros(10))], **{"lr": 0.1, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.5}, "lr must be finite and not negative, not -0.5"),
        ({"lr": math.inf}, "lr must be finite"),
        ({"lr": math.nan}, "lr must be finite"),
        ({"eps": -1.0}, "eps must be positive"),
        ({"eps": math.nan}, "eps must be positive"),
        ({"probes": 0}, "probes must be a positive integer, not 0"),
        ({"probes": 1.5}, "probes must be a positive integer, not 1.5"),
        ({"seed": -1}, "seed must be an integer in"),
        ({"seed": 2**64}, "seed must be an integer in"),
        ({"weight_decay": -0.1}, "weight_decay must be in"),
        ({"weight_decay": 11.0}, "weight_decay must be in"),
        ({"mode": "sideways"}, "mode must be"),
        ({"grid": 0.3}, "power of two"),
        ({"grid": 2.0**-200}, "power of two"),
    ],
)
def test_hyper_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        one(**options)


def test_hyper_parameters_changed_later_are_checked_by_the_step():
    opt = one()
    opt.param_groups[0]["lr"] = math.nan
    with pytest.raises(ValueError, match="lr must be finite"):
        opt.step(lambda: 1.0)


def test_16_bit_in_place_is_refused_with_the_reason():
    with pytest.raises(TypeError, match="theta would drift: use mode='shadow'"):
        zo.optim.CDRGE([nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))], lr=0.1, mode="inplace")


def test_eps_below_the_grid():
    with pytest.raises(zo.errors.GridRangeError, match="below half the grid's spacing"):
        one(eps=1e-9, mode="inplace").step(lambda: 1.0)


def test_leaving_the_grid_names_the_tensor_and_changes_nothing():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    opt = zo.optim.CDRGE(model.named_parameters(), lr=0.1, probes=2, mode="inplace")
    opt.step(lambda: 1.0)
    with torch.no_grad():
        model[1].weight.fill_(3.5)
    opt.step(lambda: 1.0)
    before = flat(opt.space)
    losses = iter([100.0, 0.0, 100.0, 0.0])
    with pytest.raises(zo.errors.GridRangeError, match=r"parameter 1\.weight .*mode='shadow'"):
        opt.step(lambda: next(losses))
    assert torch.equal(flat(opt.space), before)
    with torch.no_grad():
        model[0].bias.fill_(100.0)
    with pytest.raises(zo.errors.GridRangeError, match=r"parameter 0\.bias"):
        opt.step(lambda: 1.0)
    assert float(model[0].bias.detach().max()) == 100.0


@pytest.mark.parametrize("mode", ["inplace", "shadow"])
def test_parameters_that_are_not_finite(mode):
    model = nn.Linear(3, 3)
    opt = zo.optim.CDRGE(model.named_parameters(), lr=0.1, mode=mode)
    with torch.no_grad():
        model.bias[1] = math.nan
    with pytest.raises(ValueError, match="parameter bias holds a NaN"):
        opt.step(lambda: 1.0)


def test_a_closure_that_returns_no_single_loss():
    parameter = nn.Parameter(torch.randn(10))
    opt = zo.optim.CDRGE([parameter], lr=0.1)
    opt.step(lambda: 1.0)
    before = parameter.detach().clone()
    with pytest.raises(ValueError, match=r"one loss, not a tensor of shape \(2,\)"):
        opt.step(lambda: torch.zeros(2))
    assert torch.equal(parameter.detach(), before)


def test_a_population_needs_one_eps():
    class Population:
        def population_loss(self, seeds, eps):
            return torch.zeros(len(seeds), 2)

    groups = [{"params": [nn.Parameter(torch.zeros(3))], "eps": e} for e in (0.5, 0.25)]
    with pytest.raises(ValueError, match="one eps"):
        zo.optim.CDRGE(groups, lr=0.1).step(Population())


def test_states_of_others_are_refused():
    opt = one()
    with pytest.raises(ValueError, match="not the state of a zo_kernels optimizer"):
        opt.load_state_dict(torch.optim.SGD([nn.Parameter(torch.zeros(10))], lr=0.1).state_dict())
    with pytest.raises(ValueError, match="other sizes"):
        opt.load_state_dict(zo.optim.CDRGE([nn.Parameter(torch.zeros(11))], lr=0.1).state_dict())
    for mine, others in itertools.permutations(("inplace", "shadow", "streamed"), 2):
        with pytest.raises(ValueError, match=f"saved in mode '{others}', but the optimizer has mode '{mine}'"):
            one(mode=mine).load_state_dict(one(mode=others).state_dict())
