"""Which sign a parameter's element gets: population_loss numbers parameters as the optimizer's space does."""

import copy
import gc

import pytest
import torch
from torch import nn

import zo_kernels as zo
from tests.flat import flat, write_flat
from tests.recurrent import SMALL, TOLERANCE, each_cell, make_batch, make_model, make_seeds, moved
from zo_kernels.models import RecurrentLM
from zo_kernels.params.space import ParameterSpace, flat_offsets

EPS = 0.1


class Larger(nn.Module):
    """A model between parameters of others."""

    def __init__(self, model: RecurrentLM) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.randn(5))
        self.before = nn.Linear(20, 30)
        self.model = model
        self.after = nn.Linear(3, 4)


def losses_by_moving(space: ParameterSpace, model: RecurrentLM, seeds: torch.Tensor) -> torch.Tensor:
    """Losses [n, 2] as an optimizer sees them that perturbs its whole space and asks for one after the other."""
    theta, losses = flat(space), []
    for seed in seeds.tolist():
        for alpha in (EPS, -EPS):
            write_flat(space, zo.ops.apply_probe(theta, alpha, seed))
            losses.append(model.loss(*make_batch()).detach())
    write_flat(space, theta)
    return torch.stack(losses).view(-1, 2)


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE)


@each_cell
def test_a_submodule_is_numbered_as_in_the_arena_of_the_whole(cell: str) -> None:
    model, seeds = make_model(cell), make_seeds(3)
    alone = model.population_loss(*make_batch(), seeds, EPS)
    larger = Larger(model)
    optimizer = zo.optim.CDRGE(larger.parameters(), lr=0.1)
    within = model.population_loss(*make_batch(), seeds, EPS)
    assert_same(within, losses_by_moving(optimizer.space, model, seeds))
    assert (within - alone).abs().max() > 0.01  # other elements, other signs
    assert flat_offsets(larger)[larger.scale] == 0
    assert flat_offsets(model)[model.embedding] == 128 + 640 + 128  # after 5, 20 * 30 and 30 elements


def test_parameters_may_come_in_any_order() -> None:
    model, seeds = make_model("lstm"), make_seeds(3)
    optimizer = zo.optim.CDRGE(reversed(list(model.parameters())), lr=0.1)
    assert flat_offsets(model)[model.output_bias] == 0
    assert_same(model.population_loss(*make_batch(), seeds, EPS), losses_by_moving(optimizer.space, model, seeds))


@each_cell
@pytest.mark.parametrize("with_optimizer", [False, True])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_frozen_parameters_are_not_perturbed(cell: str, with_optimizer: bool, backend: str) -> None:
    model, seeds = make_model(cell), make_seeds(3)
    everything = model.population_loss(*make_batch(), seeds, EPS)
    for frozen in ("embedding", "recurrent_weight", "output_bias"):
        model.get_parameter(frozen).requires_grad_(False)
    expected = torch.stack(
        [
            torch.stack([moved(model, alpha, seed).loss(*make_batch()) for alpha in (EPS, -EPS)])
            for seed in seeds.tolist()
        ]
    ).detach()
    optimizer = zo.optim.CDRGE(model.parameters(), lr=0.1) if with_optimizer else None
    with zo.backend(backend):
        losses = model.population_loss(*make_batch(), seeds, EPS)
    assert_same(losses, expected)
    assert (losses - everything).abs().max() > 0.01
    if optimizer is not None:
        assert_same(losses, losses_by_moving(optimizer.space, model, seeds))
    assert len(flat_offsets(model)) == 3


def test_a_model_frozen_throughout_has_one_loss() -> None:
    model = make_model("gru").requires_grad_(False)
    losses = model.population_loss(*make_batch(), make_seeds(3), EPS)
    assert torch.equal(losses, losses[0, 0].expand(3, 2))


def test_parameters_frozen_once_the_optimizer_has_them_are_left_out() -> None:
    """The others keep their numbers."""
    model, seeds = make_model("gru"), make_seeds(3)
    optimizer = zo.optim.CDRGE(model.parameters(), lr=0.1)
    before = flat_offsets(model)
    model.embedding.requires_grad_(False)
    optimizer.space.refresh()
    assert flat_offsets(model) == {p: offset for p, offset in before.items() if p is not model.embedding}
    assert_same(model.population_loss(*make_batch(), seeds, EPS), losses_by_moving(optimizer.space, model, seeds))


def test_parameters_without_the_optimizer_are_not_perturbed() -> None:
    """An optimizer of some parameters trains these; the population must not move the others."""
    model, seeds = make_model("lstm"), make_seeds(3)
    optimizer = zo.optim.CDRGE([model.recurrent_weight, model.output_weight], lr=0.1)
    assert flat_offsets(model) == {model.recurrent_weight: 0, model.output_weight: 384}
    assert_same(model.population_loss(*make_batch(), seeds, EPS), losses_by_moving(optimizer.space, model, seeds))


def test_a_tied_weight_moves_once() -> None:
    shape = SMALL._replace(embed=12)
    model, seeds = make_model("gru", shape), make_seeds(3)
    model.output_weight = model.embedding
    alone = model.population_loss(*make_batch(), seeds, EPS)
    optimizer = zo.optim.CDRGE(model.parameters(), lr=0.1)
    losses = model.population_loss(*make_batch(), seeds, EPS)
    assert torch.equal(losses, alone)
    assert_same(losses, losses_by_moving(optimizer.space, model, seeds))


def test_parameters_shared_out_among_optimizers_are_refused() -> None:
    model = make_model("lstm")
    parameters = list(model.parameters())
    optimizers = [zo.optim.CDRGE(part, lr=0.1) for part in (parameters[:3], parameters[3:])]
    for call in (lambda: model.population_loss(*make_batch(), make_seeds(1), EPS), lambda: flat_offsets(model)):
        with pytest.raises(ValueError, match=r"belong to several optimizers: use one optimizer for all of them"):
            call()
    assert all(optimizer.steps_taken == 0 for optimizer in optimizers)


def test_the_last_optimizer_built_is_the_one() -> None:
    """Its numbers count, but during a step of the first those of the first."""
    model, seeds = make_model("lstm"), make_seeds(3)
    first = zo.optim.CDRGE(reversed(list(model.parameters())), lr=0.1)
    second = zo.optim.CDRGE(Larger(model).parameters(), lr=0.1)
    assert_same(model.population_loss(*make_batch(), seeds, EPS), losses_by_moving(second.space, model, seeds))
    expected = losses_by_moving(first.space, model, zo.philox.probe_seeds(0, 0, 96))
    first.step(model.population(*make_batch()))
    assert first.last is not None
    torch.testing.assert_close(first.last.losses, expected, rtol=0, atol=0.1)  # at eps, and on the grid


def test_a_deleted_optimizer_no_longer_counts() -> None:
    """The parameters are numbered anew: as those of the model alone."""
    model, seeds = make_model("lstm"), make_seeds(3)
    alone = model.population_loss(*make_batch(), seeds, EPS)
    optimizer = zo.optim.CDRGE(reversed(list(model.parameters())), lr=0.1)
    numbered = model.population_loss(*make_batch(), seeds, EPS)
    assert (numbered - alone).abs().max() > 0.01
    address = model.output_bias.data_ptr()
    del optimizer
    gc.collect()
    assert model.output_bias.data_ptr() == address
    assert torch.equal(model.population_loss(*make_batch(), seeds, EPS), alone)


def test_a_copy_of_a_trained_model_is_numbered_by_itself() -> None:
    model, seeds = make_model("lstm"), make_seeds(3)
    alone = model.population_loss(*make_batch(), seeds, EPS)
    optimizer = zo.optim.CDRGE(reversed(list(model.parameters())), lr=0.1)
    other = copy.deepcopy(model)
    assert torch.equal(other.population_loss(*make_batch(), seeds, EPS), alone)
    other.double()  # and a converted one
    assert_same(other.population_loss(*make_batch(), seeds, EPS), alone)
    assert len(optimizer.space.slots) == 6
