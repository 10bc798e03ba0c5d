"""model.population(...): micro-batches and segments, and what CDRGE.step makes of it."""

import copy

import pytest
import torch
from torch import nn

import zo_kernels as zo
from tests.flat import flat
from tests.recurrent import (
    SMALL,
    TOLERANCE,
    Shape,
    each_cell,
    make_batch,
    make_model,
    make_seeds,
    tokens_for,
)
from zo_kernels.estimators import Population
from zo_kernels.models import IGNORE_INDEX, ModelPopulation
from zo_kernels.models import language as language_module

SHAPE = SMALL._replace(batch=5, time=7)


@each_cell
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_micro_batches_and_segments_change_rounding_only(cell: str, backend: str) -> None:
    model, (tokens, targets), seeds = make_model(cell, SHAPE), make_batch(SHAPE), make_seeds(2)
    targets[2:4] = IGNORE_INDEX  # a whole micro-batch of two without a score
    targets[:, 3:6] = IGNORE_INDEX  # and a whole segment of three
    with zo.backend(backend):
        whole = model.population_loss(tokens, targets, seeds, 0.1)
        for micro_batch_size in (None, 1, 2, 5, 9):
            for segment_length in (None, 1, 3, 7, 20):
                population = model.population(
                    tokens, targets, micro_batch_size=micro_batch_size, segment_length=segment_length
                )
                losses = population.population_loss(seeds, 0.1)
                assert (losses.shape, losses.dtype) == ((2, 2), torch.float64)
                torch.testing.assert_close(losses, whole, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("micro_batch_size", "segment_length", "expected"),
    [
        (None, None, [(5, 7)]),
        (2, None, [(2, 7), (2, 7), (1, 7)]),
        (None, 4, [(5, 4), (5, 3)]),
        (4, 4, [(4, 4), (4, 3), (1, 4), (1, 3)]),
    ],
)
def test_no_call_sees_more_than_asked(
    micro_batch_size: int | None,
    segment_length: int | None,
    expected: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, (tokens, targets) = make_model("gru", SHAPE), make_batch(SHAPE)
    calls, population_nats = [], type(model).population_nats

    def seen(self, tokens, targets, *args, **options):
        assert tokens.shape == targets.shape
        calls.append(tuple(tokens.shape))
        return population_nats(self, tokens, targets, *args, **options)

    monkeypatch.setattr(type(model), "population_nats", seen)
    population = model.population(tokens, targets, micro_batch_size=micro_batch_size, segment_length=segment_length)
    population.population_loss(make_seeds(3), 0.1)
    assert calls == expected


def test_long_work_is_cut_into_blocks_of_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two calls into the kernel Python sees a Ctrl-C; no block has fewer probes than there are threads."""
    model, (tokens, targets), seeds = make_model("lstm", SHAPE), make_batch(SHAPE), make_seeds(11)
    whole = model.population_loss(tokens, targets, seeds, 0.1)
    calls, population_nats = [], type(model).population_nats

    def seen(self, tokens, targets, seeds, *args, **options):
        calls.append(len(seeds))
        return population_nats(self, tokens, targets, seeds, *args, **options)

    monkeypatch.setattr(type(model), "population_nats", seen)
    population = model.population(tokens, targets)
    work = model.num_products * tokens.numel() * 2
    for call_work, threads, expected in ((work * 4.5, 1, [4, 4, 3]), (0, 3, [3, 3, 3, 2]), (work * 100, 1, [11])):
        monkeypatch.setattr(language_module, "CALL_WORK", call_work)
        torch.set_num_threads(threads)
        calls.clear()
        assert torch.equal(population.population_loss(seeds, 0.1), whole)
        assert calls == expected


@each_cell
@pytest.mark.parametrize(
    ("dtype", "mode", "rounding"),
    [
        (torch.float32, "inplace", 1e-4),  # a last bit of a loss can move a parameter to the next point of its grid
        (torch.float32, "shadow", 1e-5),
        (torch.float64, "inplace", 1e-12),
        (torch.bfloat16, "shadow", 0.03),  # a closure sees parameters, and computes states, of eight bits
    ],
)
def test_steps_equal_those_of_a_closure(cell: str, dtype: torch.dtype, mode: str, rounding: float) -> None:
    shape = Shape(9, 5, 2, 8, 6, 5)
    fused = make_model(cell, shape, dtype)
    one_by_one = copy.deepcopy(fused)
    options = {"lr": 0.05, "eps": 2**-4, "probes": 4, "seed": 5, "mode": mode}
    fused_optimizer = zo.optim.CDRGE(fused.parameters(), **options)
    optimizer = zo.optim.CDRGE(one_by_one.parameters(), **options)
    start = flat(optimizer.space).double().clone()
    for step in range(4):
        batch = make_batch(shape, seed=step)
        fused_loss = fused_optimizer.step(fused.population(*batch, micro_batch_size=4))
        loss = optimizer.step(lambda batch=batch: one_by_one.loss(*batch))
        assert fused_loss == pytest.approx(loss, rel=rounding)
    theta, fused_theta = (
        flat(opt.space, {slot: opt.perturbation.theta(slot) for slot in opt.space.slots}).double()
        for opt in (optimizer, fused_optimizer)
    )
    moved = (theta - start).norm()
    assert moved > 1
    assert (theta - fused_theta).norm() < rounding * moved


def test_shadow_mode_sees_theta_of_16_bit_parameters_as_rounded() -> None:
    """The population is evaluated around the parameters themselves, in float32 arithmetic."""
    model = make_model("gru", dtype=torch.bfloat16)
    batch, wide = make_batch(), copy.deepcopy(model).float()
    optimizer = zo.optim.CDRGE(model.parameters(), lr=2**-4, probes=3)
    optimizer.step(model.population(*batch))
    seeds = torch.from_numpy(zo.philox.probe_seeds(0, 0, 3))
    assert torch.equal(optimizer.last.losses, wide.population_loss(*batch, seeds, 2**-4))


@each_cell
def test_steps_learn(cell: str) -> None:
    shape = Shape(6, 6, 2, 8, 16, 5)
    model = make_model(cell, shape)
    model.reset_parameters(torch.Generator().manual_seed(0))
    tokens = tokens_for(model, 16, 5)
    targets = tokens.roll(1, dims=1)  # each token's predecessor: it takes a memory
    targets[:, 0] = IGNORE_INDEX
    optimizer = zo.optim.CDRGE(model.parameters(), lr=0.3, eps=2**-6, probes=24)
    losses = [optimizer.step(model.population(tokens, targets)) for _ in range(150)]
    assert losses[-1] < 0.7 * losses[0]


def test_it_is_a_population_and_counts_what_is_scored() -> None:
    model, (tokens, targets) = make_model("elman"), make_batch()
    population = model.population(tokens, targets)
    assert isinstance(population, ModelPopulation)
    assert isinstance(population, Population)
    assert population.scored == int((targets >= 0).sum())


@pytest.mark.parametrize("mode", ["inplace", "shadow"])
def test_parameters_that_turn_nan_are_refused_by_name(mode: str) -> None:
    model, batch = make_model("lstm"), make_batch()
    optimizer = zo.optim.CDRGE(model.named_parameters(), lr=0.1, probes=3, mode=mode)
    optimizer.step(model.population(*batch))
    with torch.no_grad():
        model.output_bias[1] = float("nan")
    before = flat(optimizer.space)
    with pytest.raises(ValueError, match="parameter output_bias holds a NaN"):
        optimizer.step(model.population(*batch))
    assert torch.equal(flat(optimizer.space).view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("mode", ["inplace", "shadow"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("trained", [True, False])
def test_losses_that_are_all_nan_end_in_a_divergence_error(mode: str, value: float, trained: bool) -> None:
    model, batch = make_model("lstm"), make_batch()
    model.output_bias.requires_grad_(trained)  # what is not trained the optimizer does not look at
    optimizer = zo.optim.CDRGE(model.named_parameters(), lr=0.1, probes=3, mode=mode)
    optimizer.step(model.population(*batch))
    model.output_bias.data[1] = value  # not through the parameter, so it is not looked at either
    before = flat(optimizer.space)
    with pytest.raises(zo.errors.DivergenceError, match="losses of all 3 probes are NaN or infinite"):
        optimizer.step(model.population(*batch))
    assert torch.equal(flat(optimizer.space).view(torch.int32), before.view(torch.int32))
    assert optimizer.steps_taken == 1


def test_a_ctrl_c_between_blocks_leaves_theta(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_model("lstm"), make_batch()
    optimizer = zo.optim.CDRGE(model.parameters(), lr=0.1, probes=8)
    optimizer.step(model.population(*batch))
    before, calls = flat(optimizer.space), []
    monkeypatch.setattr(language_module, "CALL_WORK", 0)
    population_nats = type(model).population_nats

    def interrupted(self, *args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return population_nats(self, *args, **options)

    monkeypatch.setattr(type(model), "population_nats", interrupted)
    torch.set_num_threads(2)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(model.population(*batch))
    assert torch.equal(flat(optimizer.space), before)
    assert optimizer.steps_taken == 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"micro_batch_size": 0}, "micro_batch_size must be a positive integer, not 0"),
        ({"micro_batch_size": -3}, "micro_batch_size must be a positive integer, not -3"),
        ({"micro_batch_size": 1.5}, "micro_batch_size must be a positive integer, not 1.5"),
        ({"segment_length": 0}, "segment_length must be a positive integer, not 0"),
    ],
)
def test_bad_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_model("gru").population(*make_batch(), **sizes)


def test_a_batch_without_scored_positions_is_refused() -> None:
    tokens, targets = make_batch()
    with pytest.raises(ValueError, match="nothing to learn from this batch: every target is -100"):
        make_model("gru").population(tokens, torch.full_like(targets, IGNORE_INDEX))


def test_groups_with_their_own_eps_are_refused() -> None:
    model = make_model("gru")
    groups: list[dict[str, object]] = [
        {"params": [model.embedding], "eps": 0.5},
        {"params": [p for p in model.parameters() if p is not model.embedding]},
    ]
    optimizer = zo.optim.CDRGE(groups, lr=0.1)
    before = flat(optimizer.space)
    with pytest.raises(ValueError, match="one eps"):
        optimizer.step(model.population(*make_batch()))
    assert nn.utils.parameters_to_vector(model.parameters()).isfinite().all()
    assert optimizer.steps_taken == 0
    assert (flat(optimizer.space) - before).abs().max() < 1e-5  # rounded to the grid
