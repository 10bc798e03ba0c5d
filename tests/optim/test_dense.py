"""Dense rules are torch's optimizers."""

import math

import pytest
import safetensors.torch
import torch

from zo_kernels.optim.dense import DENSE_RULES, Adam, Momentum, get_dense_rule

THEIRS = {
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam of others": lambda parameters: torch.optim.Adam(parameters, lr=0.1, betas=(0.5, 0.75), eps=0.25),
    "momentum of 0.25": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.25),
}
OURS = {
    "adam": Adam(),
    "momentum": Momentum(),
    "adam of others": Adam(0.5, 0.75, 0.25),
    "momentum of 0.25": Momentum(0.25),
}


def gradients(dtype=torch.float64):
    """Some with zeros, and of magnitudes where Adam's eps shows."""
    values = torch.randn(12, 5, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    values[:, 0] *= 1e-9
    values[:, 1] = 0
    return values.to(dtype).unbind()


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_steps_are_those_of_torch(name, dtype, rtol):
    parameter = torch.nn.Parameter(torch.linspace(-1, 1, 35, dtype=dtype).view(5, 7))
    theta = parameter.detach().clone()
    optimizer, rule = THEIRS[name]([parameter]), OURS[name]
    state = rule.init(theta)
    for step, gradient in enumerate(gradients(dtype)):
        parameter.grad = gradient.clone()
        optimizer.step()
        theta -= 0.1 * rule.update(gradient.clone(), state, step)
        torch.testing.assert_close(theta, parameter.detach(), rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", DENSE_RULES)
def test_a_state_that_was_saved_continues(name, tmp_path):
    rule, theta = DENSE_RULES[name](), torch.zeros(5, 7, dtype=torch.float64)
    state = rule.init(theta)
    assert all(value.shape == theta.shape and value.dtype == theta.dtype for value in state.values())
    for step, gradient in enumerate(gradients()):
        safetensors.torch.save_file(state, tmp_path / "state")
        loaded = safetensors.torch.load_file(tmp_path / "state")
        expected = rule.update(gradient.clone(), state, step)
        assert torch.equal(DENSE_RULES[name]().update(gradient.clone(), loaded, step), expected)
        assert all(torch.equal(loaded[key], state[key]) for key in state)


@pytest.mark.parametrize("name", DENSE_RULES)
def test_the_direction_is_the_gradients_memory_and_not_the_states(name):
    rule, gradient = DENSE_RULES[name](), torch.ones(6)
    state = rule.init(gradient)
    direction = rule.update(gradient, state, 0)
    assert direction is gradient
    kept = {key: value.clone() for key, value in state.items()}
    direction.fill_(math.nan)  # as a caller may
    assert all(torch.equal(state[key], kept[key]) for key in state)


@pytest.mark.parametrize("beta", [-0.1, 1.0, math.nan])
def test_betas_out_of_range(beta):
    for build in (lambda: Momentum(beta), lambda: Adam(beta), lambda: Adam(0.9, beta)):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\), not"):
            build()


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan, math.inf])
def test_eps_out_of_range(eps):
    with pytest.raises(ValueError, match="eps must be positive and finite"):
        Adam(eps=eps)


@pytest.mark.parametrize("name", DENSE_RULES)
def test_a_name_is_its_rule(name):
    assert type(get_dense_rule(name)) is DENSE_RULES[name]


@pytest.mark.parametrize("rule", [None, Adam(0.5), Momentum()])
def test_a_rule_is_itself(rule):
    assert get_dense_rule(rule) is rule


def test_what_is_no_rule():
    with pytest.raises(ValueError, match=r"^unknown dense rule 'magic': choose one of adam, momentum$"):
        get_dense_rule("magic")
    with pytest.raises(TypeError, match=r"^dense is the class Adam: give an instance, Adam\(\.\.\.\)$"):
        get_dense_rule(Adam)
    for other in (3, ["adam"], torch.optim.Adam):
        with pytest.raises(TypeError, match=r"must be a DenseRule, one of the names adam, momentum, or None, not "):
            get_dense_rule(other)
