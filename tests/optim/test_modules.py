"""What an optimizer learns from the modules that its parameters come from."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from zo_kernels.optim.modules import find_modules, padding_rows


def net() -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 3, padding_idx=1), nn.Linear(3, 2))


class Renamed(nn.Module):
    """A module with a parameters() of its own, from which nothing is known."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def parameters(self, recurse: bool = True) -> Any:
        yield self.linear.weight


@pytest.mark.parametrize(
    "make",
    [
        lambda m: m,
        lambda m: m.parameters(),
        lambda m: m.named_parameters(),
        lambda m: m.parameters(recurse=False),
        lambda m: [{"params": m.parameters()}],
        lambda m: ({"params": m.named_parameters(), "lr": 0.1},),
        lambda m: [{"params": m}],
    ],
)
def test_modules_that_are_found(make: Callable[[nn.Module], Any]) -> None:
    model = net()
    params = make(model)
    (found,) = find_modules(params)
    assert found is model


def test_finding_consumes_nothing() -> None:
    model = net()
    params = model.parameters()
    find_modules(params)
    assert [id(p) for p in params] == [id(p) for p in model.parameters()]
    assert find_modules(params) == []  # now it is used up


@pytest.mark.parametrize(
    "make",
    [
        lambda m: list(m.parameters()),
        lambda m: dict(m.named_parameters()),
        lambda m: (p for p in m.parameters()),
        lambda m: m.buffers(),
        lambda m: iter([m.weight]) if hasattr(m, "weight") else iter(()),
        lambda m: [{"params": list(m.parameters())}],
        lambda m: Renamed().parameters(),
    ],
)
def test_parameters_that_do_not_tell_their_module(make: Callable[[nn.Module], Any]) -> None:
    assert find_modules(make(net())) == []


def test_one_module_for_each_group() -> None:
    first, second, third = net(), nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": first.parameters()}, {"params": list(second.parameters())}, {"params": third.parameters()}]
    found = find_modules(groups)
    assert list(map(id, found)) == [id(first), id(third)]


def test_padding_rows_of_all_embeddings() -> None:
    last, bag = nn.Embedding(6, 2, padding_idx=-1), nn.EmbeddingBag(4, 2, padding_idx=0)
    shared = nn.Embedding(3, 2, padding_idx=2)
    plain = nn.Embedding(3, 2)
    model = nn.ModuleList([last, nn.Sequential(bag, nn.Linear(2, 2)), shared, shared, plain])
    rows = {id(weight): row for weight, row in padding_rows([model, shared]).items()}
    assert rows == {id(last.weight): 5, id(bag.weight): 0, id(shared.weight): 2}
    assert padding_rows([]) == {}
    assert torch.equal(last.weight[5], torch.zeros(2))
