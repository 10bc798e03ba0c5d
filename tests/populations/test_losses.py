"""The losses of a population are those of a closure."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zo_kernels as zo
from tests.populations.modules import MODULES, build, mlp, squares
from zo_kernels.estimators import ESTIMATORS
from zo_kernels.optim import ZeroOrder


def optimizer(model: nn.Module, **options: Any) -> ZeroOrder:
    return ZeroOrder(model, **{"lr": 2**-6, "eps": 2**-7, "probes": 5, "seed": 3, **options})  # type: ignore[arg-type]


def state(model: nn.Module) -> list[Tensor]:
    return [x.detach().clone() for x in (*model.parameters(), *model.buffers())]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", MODULES)
def test_losses_are_those_of_a_closure(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, loss_fn, batch = build(name)
    opt = optimizer(model)
    expected = opt.estimate(lambda: loss_fn(model, batch)).losses
    before, places = state(model), [p.data_ptr() for p in model.parameters()]
    for probes_at_once in (None, 2):
        population = zo.ModulePopulation(model, loss_fn, probes_at_once=probes_at_once)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # torch's, that vmap calls an op once for each member
            losses = opt.estimate(population.on(batch)).losses
        torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-14)
        assert ("one after another" in caplog.text) == (name == "branching")
        assert same(state(model), before)
        assert [p.data_ptr() for p in model.parameters()] == places
    assert (expected[:, 0] != expected[:, 1]).all()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_steps_are_those_of_a_closure(name: str) -> None:
    model, loss_fn, batch = build("tied")
    other = copy.deepcopy(model)
    population = zo.ModulePopulation(model, loss_fn)
    opt, opt_other = (optimizer(m, estimator=name, grid=2**-40) for m in (model, other))
    for _ in range(3):
        loss = opt.step(population.on(batch))
        assert loss == pytest.approx(opt_other.step(lambda: loss_fn(other, batch)), rel=1e-9)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-8)


def moved(model: nn.Module, opt: ZeroOrder, by_population: bool) -> tuple[Tensor, list[Tensor]]:
    """The losses of a step, and the parameters at each of them, of a loss that vmap can't take."""
    seen: list[Tensor] = []

    def loss_fn(model: nn.Module, batch: Any) -> float:
        seen.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
        return float(sum(p.double().square().sum() for p in model.parameters()))

    population = zo.ModulePopulation(model, loss_fn)
    loss = population.on(None) if by_population else lambda: loss_fn(model, None)
    losses = opt.estimate(loss).losses
    return losses, seen[-2 * opt.probes :]


@pytest.mark.parametrize("mode", ["auto", "shadow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_members_are_bit_for_bit_what_a_closure_sees(mode: str, dtype: torch.dtype) -> None:
    model, _, _ = build("tied", dtype)
    model.project.bias.requires_grad_(False)  # type: ignore[union-attr]
    opt = optimizer(model, mode=mode)
    for _ in range(4):  # the shadow copy has bits that the parameters lack
        opt.step(lambda: sum(p.double().sin().sum() for p in model.parameters()))  # type: ignore[arg-type, return-value]
    losses, members = moved(model, opt, by_population=True)
    expected, points = moved(model, opt, by_population=False)
    assert torch.equal(losses, expected)
    assert same(members, points)
    assert not torch.equal(members[0], members[1])
    row = slice(3 * 8, 4 * 8)  # the padding row of the embedding, which comes first
    assert all(torch.equal(x[row], model.embedding.weight[3]) for x in members)  # type: ignore[index, union-attr]


def test_a_list_of_parameters_trains_the_padding_row_too() -> None:
    model, loss_fn, batch = build("tied")
    batch[0, 0] = 3
    opt = ZeroOrder(list(model.parameters()), lr=2**-6, eps=2**-7, probes=4)
    expected = opt.estimate(lambda: loss_fn(model, batch)).losses
    losses = opt.estimate(zo.ModulePopulation(model, loss_fn).on(batch)).losses
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-14)


def test_differences_in_float32_are_those_in_float64() -> None:
    differences = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(dtype)
        x, y = torch.randn(16, 32).to(dtype), torch.arange(16) % 10
        population = zo.ModulePopulation(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))
        losses = population.on((x, y)).population_loss(torch.arange(64), 2**-7)
        assert losses.dtype == torch.float64
        differences.append(losses[:, 0] - losses[:, 1])
    assert torch.corrcoef(torch.stack(differences))[0, 1] > 0.999


def test_numbers_follow_the_optimizer_after_its_state_is_loaded() -> None:
    model, loss_fn, batch = build("mlp")
    opt = optimizer(model)
    population = zo.ModulePopulation(model, loss_fn)
    opt.step(population.on(batch))
    swapped = [*list(model.parameters())[::-1]]
    saved = ZeroOrder(swapped, lr=2**-6, eps=2**-7, probes=5, seed=3)  # numbers them in another order
    expected = saved.estimate(lambda: loss_fn(model, batch)).losses
    losses = saved.estimate(population.on(batch)).losses
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-14)


class Average(nn.Linear):
    """A buffer that is replaced in each forward pass."""

    def __init__(self) -> None:
        super().__init__(6, 3)
        self.register_buffer("average", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.average = self.average * 0.5 + y.mean(0)
        return y + self.average


def test_buffers_that_are_replaced_are_put_back() -> None:
    model, x = Average(), torch.linspace(-1, 1, 30).view(5, 6)
    before = model.average
    seeds, population = torch.arange(5), zo.ModulePopulation(model, squares, probes_at_once=2)
    together = population.on(x).population_loss(seeds, 2**-7)
    alone = torch.cat([population.on(x).population_loss(seed, 2**-7) for seed in seeds.split(1)])
    torch.testing.assert_close(together, alone)
    assert model.average is before


def test_autocast_counts() -> None:
    model, loss_fn, batch = build("mlp", torch.float32)
    opt, population = optimizer(model), zo.ModulePopulation(model, loss_fn)
    plain = opt.estimate(population.on(batch)).losses
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = opt.estimate(population.on(batch)).losses
        expected = opt.estimate(lambda: loss_fn(model, batch)).losses
    torch.testing.assert_close(cast, expected, rtol=1e-2, atol=0)
    assert not torch.equal(cast, plain)


def test_micro_batches_are_the_whole_batch() -> None:
    model, loss_fn, batch = build("mlp")
    population, seeds = zo.ModulePopulation(model, loss_fn), torch.arange(4)
    whole = population.on(batch).population_loss(seeds, 2**-7)
    cut = population.on(batch, micro_batch_size=2)
    assert (cut.parts, cut.scored) == (3, 5)
    torch.testing.assert_close(cut.population_loss(seeds, 2**-7), whole, rtol=1e-12, atol=0)
    nats = sum(cut.part_nats(part, seeds, 2**-7) for part in range(3))
    assert torch.equal(nats / 5, cut.population_loss(seeds, 2**-7))  # type: ignore[operator]


def test_micro_batches_of_a_mapping_are_weighted_by_what_they_score() -> None:
    torch.manual_seed(0)
    model, names = nn.Linear(4, 3).double(), ["a"]
    batch = {"x": torch.randn(6, 4).double(), "more": (torch.tensor([0, 1, -100, -100, -100, 2]), names)}

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        assert batch["more"][1] == names
        return nn.functional.cross_entropy(model(batch["x"]), batch["more"][0])

    population, seeds = zo.ModulePopulation(model, loss_fn), torch.arange(3)
    cut = population.on(batch, micro_batch_size=2, scored=lambda part: (part["more"][0] != -100).sum())
    assert (cut.parts, cut.scored) == (3, 3)  # the second scores nothing
    whole = population.on(batch).population_loss(seeds, 2**-7)
    torch.testing.assert_close(cut.population_loss(seeds, 2**-7), whole, rtol=1e-12, atol=0)


def test_no_probes_are_no_losses() -> None:
    population = zo.ModulePopulation(mlp(), squares)
    assert population.on(torch.ones(2, 6)).population_loss(torch.zeros(0, dtype=torch.int64), 0.1).shape == (0, 2)
