"""FlashLM's population: probes as further heads, against each perturbed copy of the model on its own."""

import copy
import math

import pytest
import torch
from torch import Tensor

import zo_kernels as zo
from tests.flat import flat
from tests.models.flashrnn.models import each_flash_cell, make_flash
from tests.models.flashrnn.stand_in import cuda_backend
from tests.recurrent import SMALL, TOLERANCE, Shape, copies, make_batch, make_seeds, make_states, moved, tokens_for
from zo_kernels.estimators import Population
from zo_kernels.models import IGNORE_INDEX
from zo_kernels.models.flashrnn import plan as plan_module
from zo_kernels.models.flashrnn.choice import CELLS
from zo_kernels.models.flashrnn.language_model import FlashLM

EPS = 0.1


def one_by_one(model: FlashLM, tokens: Tensor, targets: Tensor, seeds: Tensor, eps: float = EPS) -> Tensor:
    """Losses [n, 2] of the model at each point, of 16-bit parameters in float32."""
    with torch.no_grad():
        losses = [moved(model, alpha, seed).loss(tokens, targets) for seed in seeds.tolist() for alpha in (eps, -eps)]
    return torch.stack(losses).view(-1, 2)


def allow(monkeypatch: pytest.MonkeyPatch, probes: int, steps: int) -> None:
    """Plans of so many probes and steps at a time, where there are as many."""
    monkeypatch.setattr(plan_module.Work, "fits", lambda self, n, t, budget: n <= probes and t <= steps)
    monkeypatch.setattr(plan_module, "_STEPS", steps)


@each_flash_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [SMALL, Shape(20, 3, 1, 7, 2, 3)], ids=str)
def test_losses_are_those_of_the_perturbed_models(cell: str, dtype: torch.dtype, shape: Shape) -> None:
    """The batch of one shape has more positions than there are tokens, that of the other fewer."""
    model, (tokens, targets), seeds = make_flash(cell, shape, dtype), make_batch(shape), make_seeds(3)
    before = copy.deepcopy(model.state_dict())
    losses = model.population_loss(tokens, targets, seeds, EPS)
    assert (losses.shape, losses.dtype, losses.requires_grad) == ((3, 2), torch.float64, False)
    tolerance = 1e-12 if dtype == torch.float64 else TOLERANCE
    torch.testing.assert_close(losses, one_by_one(model, tokens, targets, seeds), rtol=0, atol=tolerance)
    assert losses.std() > 0.01
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@each_flash_cell
def test_the_native_path_computes_the_same(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, targets), seeds = make_flash(cell), make_batch(), make_seeds(3)
    expected = model.population_loss(tokens, targets, seeds, EPS)
    with cuda_backend(monkeypatch) as kernel:
        losses = make_flash(cell).population_loss(tokens, targets, seeds, EPS)
    torch.testing.assert_close(losses, expected, rtol=0, atol=TOLERANCE)
    ((wx, states, recurrent, bias),) = kernel.calls  # all six members in one call, and nothing copied
    assert kernel.training == [False]
    assert kernel.configs[0].num_heads == len(recurrent) == 6 * 2
    for i, seed in enumerate(seeds.tolist()):
        for s, alpha in enumerate((EPS, -EPS)):
            member, part = moved(model, alpha, seed), slice(2 * (2 * i + s), 2 * (2 * i + s) + 2)
            assert torch.equal(recurrent[part], member.recurrent_weight)
            assert torch.equal(bias[part], member.bias)
            assert torch.equal(states[:, :, part], torch.zeros(CELLS[cell].states, 3, 2, 6))
            e_TBE = member.embedding[tokens.t()]
            torch.testing.assert_close(
                wx[:, :, part], torch.einsum("tbe,nide->tbnid", e_TBE, member.input_weight), rtol=0, atol=1e-5
            )


@each_flash_cell
@pytest.mark.parametrize(("probes", "steps"), [(1, 1), (2, 4), (3, 2), (4, 9), (7, 4), (100, 100)])
def test_chunks_and_segments_change_rounding_only(
    cell: str, probes: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SMALL._replace(time=9)
    model, (tokens, targets), seeds = make_flash(cell, shape), make_batch(shape), make_seeds(7)
    before = make_states(model, 7, shape.batch)
    if cell == "slstm":
        before = tuple(state + 2 * (i == 2) for i, state in enumerate(before))
    whole_states = copies(before)
    whole = model.population_loss(tokens, targets, seeds, EPS)
    carried = model.population_loss(tokens, targets, seeds, EPS, states=whole_states)
    assert (whole - carried).abs().max() > 1e-3
    allow(monkeypatch, probes, steps)
    model, states = copy.deepcopy(model), copies(before)
    with cuda_backend(monkeypatch) as kernel:
        actual = model.population_loss(tokens, targets, seeds, EPS)
        calls = [(len(wx), recurrent.data_ptr()) for wx, _, recurrent, _ in kernel.calls]
        torch.testing.assert_close(model.population_loss(tokens, targets, seeds, EPS, states=states), carried)
    torch.testing.assert_close(actual, whole, rtol=0, atol=TOLERANCE)
    for state, expected in zip(states, whole_states, strict=True):
        torch.testing.assert_close(state, expected, rtol=0, atol=TOLERANCE)
    chunks = math.ceil(7 / probes)
    lengths = [min(steps, 9 - start) for start in range(0, 9, steps)]
    assert [length for length, _ in calls] == lengths * chunks
    assert {config.num_heads for config in kernel.configs} == {2 * math.ceil(7 / chunks) * 2}  # the last filled up
    assert len({address for _, address in calls}) == 1  # one buffer for all
    assert kernel.kept == 0  # of the states of all steps, none are in memory when the next are computed


def test_no_size_is_compiled_for_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, targets), seeds = make_flash("lstm"), make_batch(), make_seeds(8)
    expected = model.population_loss(tokens, targets, seeds, EPS)
    with cuda_backend(monkeypatch) as kernel:
        model = make_flash("lstm")
        for part in (seeds, seeds[:3], seeds[2:7]):
            model.population_loss(tokens, targets, part, EPS)
        rest = model.population_loss(tokens[:2], targets[:2], seeds[6:], EPS)
    assert {config.num_heads for config in kernel.configs} == {32}
    torch.testing.assert_close(rest, make_flash("lstm").population_loss(tokens[:2], targets[:2], seeds[6:], EPS))
    assert expected.shape == (8, 2)


@each_flash_cell
def test_segments_of_a_stream(cell: str) -> None:
    model, tokens = make_flash(cell), tokens_for(make_flash(cell), 2, 13)
    seeds, states = make_seeds(3), make_flash(cell).population_states(3, 2)
    whole = model.population_nats(tokens[:, :-1], tokens[:, 1:], seeds, EPS)
    nats = torch.zeros(3, 2, dtype=torch.float64)
    for start, stop in ((0, 5), (5, 6), (6, 12)):
        segment = tokens[:, start:stop], tokens[:, start + 1 : stop + 1]
        nats += model.population_nats(*segment, seeds, EPS, states=states)
    torch.testing.assert_close(nats, whole, rtol=0, atol=24 * TOLERANCE)


@each_flash_cell
def test_targets_that_are_not_scored(cell: str) -> None:
    model, (tokens, targets), seeds = make_flash(cell), make_batch(ignored=0), make_seeds(2)
    targets[1:] = IGNORE_INDEX
    nats = model.population_nats(tokens, targets, seeds, EPS)
    torch.testing.assert_close(nats, model.population_nats(tokens[:1], targets[:1], seeds, EPS), rtol=0, atol=2e-5)
    torch.testing.assert_close(model.population_loss(tokens, targets, seeds, EPS) * 4, nats)
    targets.fill_(IGNORE_INDEX)
    assert torch.equal(model.population_nats(tokens, targets, seeds, EPS), torch.zeros(2, 2, dtype=torch.float64))
    assert model.population_loss(tokens, targets, seeds, EPS).isnan().all()
    assert model.population_loss(tokens, targets, seeds[:0], EPS).shape == (0, 2)


@each_flash_cell
@pytest.mark.parametrize("frozen", ["embedding", "input_weight", "recurrent_weight", "bias", "output_weight"])
def test_frozen_parameters_are_not_perturbed(cell: str, frozen: str) -> None:
    model, (tokens, targets), seeds = make_flash(cell), make_batch(), make_seeds(2)
    all_of_them = model.population_loss(tokens, targets, seeds, EPS)
    model.get_parameter(frozen).requires_grad_(False)
    losses = model.population_loss(tokens, targets, seeds, EPS)
    torch.testing.assert_close(losses, one_by_one(model, tokens, targets, seeds), rtol=0, atol=TOLERANCE)
    assert (losses - all_of_them).abs().max() > 1e-4


def test_signs_are_those_of_the_optimizer() -> None:
    """Parameters in another order, and one left out."""
    model, (tokens, targets), seeds = make_flash("gru"), make_batch(), make_seeds(2)
    alone = model.population_loss(tokens, targets, seeds, EPS)
    trained = [model.output_bias, model.recurrent_weight, model.embedding]
    optimizer = zo.optim.CDRGE(trained, lr=0.1, mode="shadow")
    losses = model.population_loss(tokens, targets, seeds, EPS)
    assert (losses - alone).abs().max() > 1e-3
    for seed, pair in zip(seeds.tolist(), losses, strict=True):
        for alpha, loss in zip((EPS, -EPS), pair, strict=True):
            member = copy.deepcopy(model)
            with torch.no_grad():
                for name, x in model.named_parameters():
                    if any(x is p for p in trained):
                        offset = optimizer.space.slot_of(x).offset
                        member.get_parameter(name).copy_(zo.ops.apply_probe(x, alpha, seed, offset=offset))
                torch.testing.assert_close(member.loss(tokens, targets), loss, rtol=0, atol=TOLERANCE)


@each_flash_cell
@pytest.mark.parametrize(
    ("dtype", "mode", "rounding"),
    [(torch.float32, "inplace", 1e-4), (torch.float32, "shadow", 1e-5), (torch.float64, "inplace", 1e-12)],
)
def test_steps_equal_those_of_a_closure(cell: str, dtype: torch.dtype, mode: str, rounding: float) -> None:
    shape = Shape(9, 5, 2, 8, 6, 5)
    fused = make_flash(cell, shape, dtype)
    single = copy.deepcopy(fused)
    options = {"lr": 0.05, "eps": 2**-4, "probes": 3, "seed": 5, "mode": mode}
    fused_optimizer = zo.optim.CDRGE(fused.parameters(), **options)
    optimizer = zo.optim.CDRGE(single.parameters(), **options)
    start = flat(optimizer.space)
    for step in range(3):
        batch = make_batch(shape, seed=step)
        loss = fused_optimizer.step(fused.population(*batch, micro_batch_size=4))
        assert loss == pytest.approx(optimizer.step(lambda batch=batch: single.loss(*batch)), rel=rounding)
    moved_by = (flat(optimizer.space) - start).norm()
    assert moved_by > 0.5
    assert (flat(optimizer.space) - flat(fused_optimizer.space)).norm() < rounding * moved_by


def test_population_cuts_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = SMALL._replace(batch=5, time=7)
    model, (tokens, targets), seeds = make_flash("lstm", shape), make_batch(shape), make_seeds(4)
    whole = model.population_loss(tokens, targets, seeds, EPS)
    calls, population_nats = [], FlashLM.population_nats

    def seen(self, tokens, targets, seeds, *args, **options):
        calls.append((*tokens.shape, len(seeds)))
        return population_nats(self, tokens, targets, seeds, *args, **options)

    monkeypatch.setattr(FlashLM, "population_nats", seen)
    population = model.population(tokens, targets, micro_batch_size=4, segment_length=4)
    assert isinstance(population, Population)
    torch.testing.assert_close(population.population_loss(seeds, EPS), whole, rtol=0, atol=TOLERANCE)
    assert calls == [(4, 4, 4), (4, 3, 4), (1, 4, 4), (1, 3, 4)]
    with pytest.raises(ValueError, match="nothing to learn from this batch"):
        model.population(tokens, torch.full_like(targets, IGNORE_INDEX))


@each_flash_cell
@pytest.mark.slow
def test_steps_learn(cell: str) -> None:
    model = FlashLM(6, 6, 16, 2, cell=cell, seed=0)
    tokens = tokens_for(model, 16, 5)
    targets = tokens.roll(1, dims=1)  # each token's predecessor: it takes a memory
    targets[:, 0] = IGNORE_INDEX
    optimizer = zo.optim.CDRGE(model.parameters(), lr=0.3, eps=2**-6, probes=24)
    losses = [optimizer.step(model.population(tokens, targets)) for _ in range(150)]
    assert losses[-1] < 0.7 * losses[0]
