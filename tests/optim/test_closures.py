"""What a step takes as a closure, and the contexts in which it calls one: autocast and torch.compile."""

import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.optim.small import built, closure_of
from zo_kernels.optim import ZeroOrder


def parameters_of(opt: ZeroOrder) -> list[Tensor]:
    return [p.detach().clone() for group in opt.param_groups for p in group["params"]]


def assert_unmoved(opt: ZeroOrder, before: list[Tensor]) -> None:
    assert all(map(torch.equal, parameters_of(opt), before))


def raises_nothing_but(error: type[Exception], message: str, opt: ZeroOrder, closure: object) -> None:
    """The step is refused with one sentence, in the middle of its losses too, and leaves no trace."""
    before, steps = parameters_of(opt), opt.steps_taken
    with pytest.raises(error, match=message) as caught:
        opt.step(closure)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert opt.steps_taken == steps
    assert_unmoved(opt, before)


@pytest.mark.parametrize("mode", ["inplace", "shadow"])
@pytest.mark.parametrize("calls_before", [0, 3])
@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (None, TypeError, "it returned None"),
        (SimpleNamespace(loss=torch.tensor(1.0)), TypeError, "not a SimpleNamespace: return its .loss"),
        ((torch.tensor(1.0), torch.zeros(3)), TypeError, "not a tuple: return the loss in it"),
        ([1.0], TypeError, "not a list: return the loss in it"),
        ({"loss": torch.tensor(1.0)}, TypeError, "not a dict: return the loss in it"),
        (torch.zeros(2), ValueError, r"one loss, not a tensor of shape \(2,\)"),
        (1j, TypeError, "not a complex"),
        (True, TypeError, "not a bool"),
        (torch.tensor(True), TypeError, "not a tensor of bool"),
        (torch.tensor(1j), TypeError, "a real loss, not a complex one"),
    ],
)
def test_what_a_closure_returns_by_mistake(
    mode: str, calls_before: int, returned: object, error: type[Exception], message: str
) -> None:
    model, opt = built(mode=mode)
    opt.step(closure_of(model))
    loss, calls = closure_of(model), 0

    def closure() -> object:
        nonlocal calls
        calls += 1
        return loss() if calls <= calls_before else returned

    raises_nothing_but(error, message, opt, closure)


@pytest.mark.parametrize("given", [None, torch.tensor(1.0), 0.5])
def test_what_is_not_a_closure(given: object) -> None:
    message = f"the closure must be a function that computes the loss, not a {type(given).__name__}"
    _, opt = built()
    raises_nothing_but(TypeError, message, opt, given)  # not even rounded to a grid
    _, filtered = built(max_cosine_distance=1.0)
    raises_nothing_but(TypeError, message, filtered, [lambda: 1.0, given])


@pytest.mark.parametrize("how", ["backward", "grad"])
def test_a_closure_that_asks_for_gradients(how: str) -> None:
    model, opt = built()
    opt.step(closure_of(model))

    def closure() -> Tensor:
        opt.zero_grad()
        loss = closure_of(model)()
        if how == "backward":
            loss.backward()
        else:
            torch.autograd.grad(loss, list(model.parameters()))
        return loss

    raises_nothing_but(ValueError, r"leave backward\(\) and zero_grad\(\) out", opt, closure)


def test_gradients_of_other_things_are_no_mistake() -> None:
    """A loss may itself be made of gradients: they need enable_grad, and there they are found."""
    model, opt = built()

    def closure() -> Tensor:
        with torch.enable_grad():
            x = torch.ones(5, 7, requires_grad=True)
            (slope,) = torch.autograd.grad(model(x).sum(), x)
        return slope.square().sum()

    assert opt.step(closure) > 0


def test_errors_of_the_closure_itself_stay_what_they_are() -> None:
    _, opt = built(mode="shadow")

    def closure() -> float:
        raise RuntimeError("this layer does not require grad")

    raises_nothing_but(RuntimeError, "^this layer does not require grad$", opt, closure)


def different_losses(opt: ZeroOrder) -> int:
    assert opt.last is not None
    return len(set(opt.last.losses.flatten().tolist()))


def autocast_cpu(**options: bool) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, **options)


@pytest.mark.parametrize("outer", [{}, {"cache_enabled": False}, {"enabled": False}])
@pytest.mark.parametrize("inside", [False, True])
def test_casts_do_not_outlive_their_parameters(outer: dict[str, bool], inside: bool) -> None:
    """An outer context keeps the cache alive, even one that is disabled."""
    (model, opt), (other, alone) = built(), built()

    def closure_for(net: nn.Module) -> Callable[[], Tensor]:
        loss = closure_of(net)

        def closure() -> Tensor:
            if not inside:
                return loss()
            with autocast_cpu():
                return loss()

        return closure

    loss = closure_for(model)
    is_cast = inside or outer.get("enabled", True)
    with autocast_cpu(**outer):
        for _ in range(3):
            opt.step(loss)
            assert different_losses(opt) > 6
            after = loss().item()  # of the parameters as they are now
            estimate = opt.estimate(loss)
            assert loss().item() == after
        opt.apply(estimate)
        moved = loss().item()
        assert moved != after
    with autocast_cpu(enabled=is_cast):
        assert loss().item() == moved
    # With the cache out of play, the same losses bit for bit.
    with autocast_cpu(enabled=is_cast, cache_enabled=False):
        for _ in range(4):
            alone.step(closure_of(other))
    assert opt.last is not None
    assert alone.last is not None
    assert torch.equal(opt.last.losses, alone.last.losses)
    assert_unmoved(opt, parameters_of(alone))


def test_a_population_under_autocast() -> None:
    """2-SPSA asks a population at other parameters each time."""
    model, opt = built(eps=2**-5, estimator="2-spsa")
    weight, means = next(model.parameters()), []

    class Population:
        def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
            means.append(nn.functional.linear(torch.ones(1, 7), weight).double().mean().item())
            return torch.tensor([[1.0, 0.5]], dtype=torch.float64).repeat(len(seeds), 1)

    with autocast_cpu():
        opt.step(Population())
    assert len(means) == 1 + 2 * opt.probes
    assert len(set(means)) > opt.probes


def test_plain_steps_do_not_load_dynamo(monkeypatch: pytest.MonkeyPatch) -> None:
    model, opt = built()
    for name in [name for name in sys.modules if name.split(".")[:2] == ["torch", "_dynamo"]]:
        monkeypatch.delitem(sys.modules, name)

    class Refuse:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            assert not name.startswith("torch._dynamo"), "a plain step imports torch._dynamo"

    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    loss = closure_of(model)
    opt.step(loss)
    estimate = opt.estimate(loss)
    opt.apply(estimate)
    opt.replay(estimate.coeffs)
    assert opt.steps_taken == 3
    assert "torch._dynamo" not in sys.modules


def test_estimate_apply_and_replay_in_compiled_functions() -> None:
    (model, opt), (other, plain) = built(), built()
    loss, same = closure_of(model), closure_of(other)

    @torch.compile(backend="eager")
    def train() -> Tensor:
        estimate = opt.estimate(loss)
        opt.apply(estimate)
        opt.replay(estimate.coeffs)
        return estimate.coeffs * 2

    doubled = train()
    estimate = plain.estimate(same)
    plain.apply(estimate)
    plain.replay(estimate.coeffs)
    assert torch.equal(doubled, 2 * estimate.coeffs)
    assert_unmoved(opt, parameters_of(plain))
