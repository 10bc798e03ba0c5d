"""Warnings about losses from which nothing can be learned, each logged once."""

import math
from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor, nn

from tests.names import name_of
from tests.optim.small import KINDS, built, closure_of
from zo_kernels.optim import CDRGE
from zo_kernels.optim.watch import Watch, _last_place


def assign(model: nn.Module) -> Callable[[], Tensor]:
    model.load_state_dict({name: x.clone() for name, x in model.state_dict().items()}, assign=True)
    return closure_of(model)


def replace(model: nn.Module) -> Callable[[], Tensor]:
    for layer in model.children():
        for name, p in list(layer.named_parameters(recurse=False)):
            setattr(layer, name, nn.Parameter(p.detach().clone()))
    return closure_of(model)


def call_on_copies(model: nn.Module) -> Callable[[], Tensor]:
    copies = {name: p.detach().clone() for name, p in model.named_parameters()}
    x = torch.linspace(-1, 1, 35).view(5, 7)
    return lambda: torch.func.functional_call(model, copies, (x,)).square().mean()


@pytest.mark.parametrize("detach", [assign, replace, call_on_copies])
@pytest.mark.parametrize("estimator", ["cd", "fd", "antithetic", "1.5-spsa", "2-spsa"])
def test_parameters_on_which_nothing_depends(
    detach: Callable[[nn.Module], Callable[[], Tensor]], estimator: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, opt = built(estimator=estimator)
    loss = detach(model)
    for _ in range(3):
        opt.step(loss)
    (record,) = caplog.records
    assert (record.levelname, record.name) == ("WARNING", "zo_kernels")
    assert "does the closure use the optimizer's parameters? (load_state_dict(assign=True)" in record.message


def test_micro_batches_are_looked_at_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    """Their losses differ from each other, though none depends on the parameters."""
    _, opt = built(max_cosine_distance=2.0)
    for _ in range(2):
        opt.step([lambda: 1.0, lambda: 2.0])
    (record,) = caplog.records
    assert "all 12 losses of this step are 1: " in record.message


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_nothing_is_said_of_steps_that_learn(kind: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    model, opt = built(**kind)
    for _ in range(2):
        opt.step(closure_of(model))
    assert not caplog.records


def test_nothing_is_said_where_nothing_is_perturbed(caplog: pytest.LogCaptureFixture) -> None:
    _, opt = built(eps=None, lr=0.0)
    opt.step(lambda: 1.0)
    assert not caplog.records


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_losses_that_were_rounded(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    """The true differences are 1.5 units in the last place, or 64 times that."""
    unit = torch.finfo(dtype).eps
    for scale, said in ((96.0, 0), (1.5, 1), (1.5, 1)):
        watch = Watch()
        for shift in (0.0, 0.25, 0.5):
            sides = 1 + shift + scale * unit * torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.25, 0.0]], dtype=torch.float64)
            watch.look(sides.to(dtype).double())
        assert len(caplog.records) == said
        caplog.clear()


def test_two_sides_at_rounding_level_though_the_probes_differ(caplog: pytest.LogCaptureFixture) -> None:
    last = torch.finfo(torch.float32).eps
    Watch().look(torch.tensor([[1.0, 1.0 + last], [1.5 + 2 * last, 1.5]], dtype=torch.float64))
    (record,) = caplog.records
    assert record.message.startswith("the losses on the two sides of a probe differ by at most 2.38e-07")
    assert "rounded to multiples of 1.19e-07" in record.message


def test_losses_that_are_not_finite_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    nan, inf = float("nan"), float("inf")
    watch = Watch()
    for losses in ([[nan, nan]], [[1.0, nan]], [[inf, -inf]], [[nan, 1.0], [0.5, inf], [2.0, 3.0]]):
        watch.look(torch.tensor(losses, dtype=torch.float64))
    assert not caplog.records
    watch.look(torch.tensor([[nan, 1.0], [1.0, 1.0]], dtype=torch.float64))
    assert "all 3 losses" in caplog.records[0].message


@hypothesis.given(
    st.lists(st.floats(-1e4, 1e4, width=64), min_size=1).filter(lambda losses: max(map(abs, losses)) > 1e-4),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.float64]),
)
def test_the_unit_of_rounded_losses(losses: list[float], dtype: torch.dtype) -> None:
    """It is that of the dtype that they were rounded to, or of a coarser one that holds them too."""
    rounded = torch.tensor(losses, dtype=torch.float64).to(dtype).double()
    magnitude = 2.0 ** math.floor(math.log2(max(map(abs, rounded.tolist()))))
    unit = _last_place(rounded)
    holding = [
        torch.finfo(d).eps * magnitude
        for d in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
        if all(math.isfinite(x) for x in rounded.to(d).tolist())
        and (rounded.to(d).double() - rounded).count_nonzero() == 0
    ]
    assert unit >= torch.finfo(dtype).eps * magnitude
    assert unit == max(holding)


@pytest.mark.parametrize("options", [{}, {"dense": "adam"}, {"dense": "momentum", "mode": "shadow"}])
def test_eps_out_of_scale(options: dict[str, object], caplog: pytest.LogCaptureFixture) -> None:
    model, opt = built(eps=0.25, lr=2**-10, **options)
    opt.step(closure_of(model))  # the largest parameter is 0.37
    assert not caplog.records
    opt.param_groups[0]["eps"] = 0.5
    for _ in range(2):
        opt.step(closure_of(model))
    (record,) = caplog.records
    assert record.message.startswith("eps 0.5 is larger than every parameter (at most 0.")


def test_when_a_closure_is_called_twice_more() -> None:
    calls = 0

    def loss() -> float:
        nonlocal calls
        calls += 1
        return float(calls % 2)

    for check_every, expected in ((100, [9, 99, 199]), (4, [3, 7, 9, 11, 15]), (0, [])):
        opt = CDRGE([nn.Parameter(torch.zeros(3))], lr=0.0, eps=0.5, probes=1, check_every=check_every)
        found = []
        for step in range(205 if check_every == 100 else 17):
            calls = 0
            opt.step(loss)
            if calls > 2:
                assert calls == 4
                found.append(step)
        assert found == expected


def test_a_population_is_not_evaluated_twice() -> None:
    calls = 0

    class Population:
        def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
            nonlocal calls
            calls += 1
            return torch.rand(len(seeds), 2, dtype=torch.float64)

    _, opt = built(check_every=1)
    for _ in range(3):
        opt.step(Population())
    assert calls == 3


@pytest.mark.parametrize("options", [{}, {"mode": "shadow"}, {"dense": "adam"}, {"estimator": "fd"}])
def test_checks_change_no_bit(options: dict[str, object]) -> None:
    (model, checked), (other, plain) = built(check_every=1, **options), built(check_every=0, **options)
    for _ in range(3):
        assert checked.step(closure_of(model)) == plain.step(closure_of(other))
        assert checked.last is not None
        assert plain.last is not None
        assert torch.equal(checked.last.losses, plain.last.losses)
        assert torch.equal(checked.last.coeffs, plain.last.coeffs)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
