"""What a population can't take is said in a sentence, and leaves the module as it was."""

from __future__ import annotations

import logging
import signal
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zo_kernels as zo
from tests.populations.modules import branching, mlp, squares

X = torch.linspace(-1, 1, 30).view(5, 6)


def losses(model: nn.Module, loss_fn: Any, batch: Any = X, **options: Any) -> Tensor:
    return zo.ModulePopulation(model, loss_fn, **options).on(batch).population_loss(torch.arange(3), 2**-7)


def test_members_one_after_another_are_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    model = mlp()
    population = zo.ModulePopulation(model, branching)
    with caplog.at_level(logging.WARNING, "zo_kernels"):
        for _ in range(3):
            population.on(X).population_loss(torch.arange(3), 2**-7)
    (record,) = caplog.records
    assert "torch.vmap can't take this module, so its losses are evaluated one after another: " in record.message
    assert "control flow" in record.message


class Noisy(nn.Linear):
    """Noise that vmap does not come to see."""

    def forward(self, x: Tensor) -> Tensor:
        float(self.weight.sum())
        return super().forward(x + torch.randn_like(x))


@pytest.mark.parametrize("model", [nn.Sequential(mlp(), nn.Dropout(0.5)), Noisy(6, 3)], ids=["dropout", "noise"])
def test_random_numbers_are_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"draws random numbers .*: call model.eval\(\)"):
        losses(model, squares)


def test_dropout_in_evaluation_mode_is_taken() -> None:
    assert losses(nn.Sequential(mlp(), nn.Dropout(0.5)).eval(), squares).shape == (3, 2)


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda model, x: model(x), ValueError, r"loss_fn must return one loss, not a tensor of shape \(5, 3\)"),
        (lambda model, x: {"loss": model(x)}, TypeError, "loss_fn must return the loss, .* not a dict"),
        (lambda model, x: model(x).sum() > 0, TypeError, "not a tensor of torch.bool"),
        (lambda model, x: model(x[:, :3]), RuntimeError, "shapes cannot be multiplied"),
    ],
    ids=["logits", "dict", "bool", "error"],
)
def test_what_is_no_loss(loss_fn: Any, error: type[Exception], message: str) -> None:
    model = mlp()
    before = list(model.parameters())
    with pytest.raises(error, match=message):
        losses(model, loss_fn)
    assert all(p is q for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: zo.ModulePopulation(squares, squares), TypeError, "model must be a torch.nn.Module, not a function"),
        (lambda: zo.ModulePopulation(mlp(), None), TypeError, "loss_fn must be a function of a model and a batch"),
        (
            lambda: zo.ModulePopulation(mlp(), squares, probes_at_once=0),
            ValueError,
            "probes_at_once must be",
        ),
        (lambda: zo.ModulePopulation(mlp(), squares).on(X, micro_batch_size=0), ValueError, "micro_batch_size must be"),
        (lambda: zo.ModulePopulation(mlp(), squares).on((X, X[:3]), micro_batch_size=2), ValueError, r"\[3, 5\] rows"),
        (lambda: zo.ModulePopulation(mlp(), squares).on(3, micro_batch_size=2), ValueError, "of the batch are missing"),
        (
            lambda: zo.ModulePopulation(mlp(), squares).on(X, micro_batch_size=2, scored=lambda part: 0),
            ValueError,
            "nothing to learn",
        ),
        (lambda: losses(mlp().requires_grad_(False), squares), ValueError, "no parameter of the module is trained"),
    ],
)
def test_bad_arguments(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_ctrl_c_waits_for_the_end_of_a_pass_and_leaves_the_module_as_it_was() -> None:
    model = mlp()
    opt = zo.optim.CDRGE(model, lr=2**-6, probes=4)
    opt.step(lambda: squares(model, X))
    before = [(p, p.detach().clone()) for p in model.parameters()]
    passes = []

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        passes.append(1)
        return squares(model, x)

    with pytest.raises(KeyboardInterrupt):
        opt.step(zo.ModulePopulation(model, loss_fn, probes_at_once=2).on(X))
    assert len(passes) == 1
    assert all(p is q and torch.equal(p, x) for p, (q, x) in zip(model.parameters(), before, strict=True))


def test_less_memory_is_fewer_probes_at_once() -> None:
    sizes = []

    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        weight = torch._C._functorch.get_unwrapped(model[0].weight)  # type: ignore[index]
        sizes.append(len(weight) // 2)
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError
        return squares(model, x)

    model = mlp()
    found = zo.ModulePopulation(model, loss_fn).on(X).population_loss(torch.arange(7), 2**-7)
    assert sizes == [1, 6, 3, 1, 1, 1, 1, 1, 1]
    torch.testing.assert_close(found, zo.ModulePopulation(model, squares).on(X).population_loss(torch.arange(7), 2**-7))
