"""What a population forward leaves alone, what it carries on, and what its numbers do not depend on."""

import pytest
import torch

import zo_kernels as zo
from tests.recurrent import (
    DTYPES,
    SMALL,
    TOLERANCE,
    Shape,
    copies,
    each_cell,
    make_batch,
    make_model,
    make_seeds,
    make_states,
)
from zo_kernels import _C
from zo_kernels.models import IGNORE_INDEX


@each_cell
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_theta_is_not_written_and_states_are(cell: str, backend: str, dtype: torch.dtype) -> None:
    model, (tokens, targets), seeds = make_model(cell, dtype=dtype), make_batch(), make_seeds(2)
    inputs = [*model.parameters(), tokens, targets, seeds]
    before, versions = [x.detach().clone() for x in inputs], [x._version for x in inputs]
    states = make_states(model, 2, SMALL.batch)
    states_before, states_versions = copies(states), [state._version for state in states]
    with zo.backend(backend):
        model.population_loss(tokens, targets, seeds, 0.1, states=states)
        model.population(tokens, targets).population_loss(seeds, 0.1)
    assert all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(inputs, before, strict=True))
    assert [x._version for x in inputs] == versions
    for state, old, version in zip(states, states_before, states_versions, strict=True):
        assert not (state == old).any()
        assert state._version > version


@each_cell
@pytest.mark.parametrize("batch", [2, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_segments_equal_one_call(cell: str, batch: int, dtype: torch.dtype) -> None:
    shape = SMALL._replace(batch=batch, time=23)
    model, (tokens, targets), seeds = make_model(cell, shape, dtype), make_batch(shape), make_seeds(2)
    targets[:, 4:9] = IGNORE_INDEX  # a segment that is not scored carries its states on all the same
    whole_states = model.population_states(2, batch)
    whole = model.population_nats(tokens, targets, seeds, 0.1, states=whole_states)
    states, total = model.population_states(2, batch), torch.zeros(2, 2, dtype=torch.float64)
    for segment, segment_targets in zip(tokens.split([4, 5, 13, 1], 1), targets.split([4, 5, 13, 1], 1), strict=True):
        total += model.population_nats(segment, segment_targets, seeds, 0.1, states=states)
    atol = TOLERANCE if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(total, whole, rtol=0, atol=atol * targets.numel())
    torch.testing.assert_close(states, whole_states, rtol=0, atol=atol)
    torch.testing.assert_close(model.population_nats(tokens, targets, seeds, 0.1), whole, rtol=0, atol=atol)
    started = make_states(model, 2, batch)
    assert (model.population_nats(tokens, targets, seeds, 0.1, states=started) - whole).abs().max() > 0.01


def test_states_start_at_zero_in_float32() -> None:
    model = make_model("lstm", dtype=torch.bfloat16)
    states = model.population_states(5, 3)
    assert len(states) == 2
    for state in states:
        assert (state.shape, state.dtype, bool(state.any())) == ((5, 2, 2, 3, 6), torch.float32, False)


@each_cell
@pytest.mark.parametrize("batch", [1, 21, 150])
@pytest.mark.parametrize("probes", [1, 5])
def test_threads_change_no_bit(cell: str, batch: int, probes: int) -> None:
    """With as many members as threads each thread has its own; with fewer they share heads, sequences and positions."""
    shape = Shape(40, 9, 3, 17, batch, 20)
    model, (tokens, targets), seeds = make_model(cell, shape), make_batch(shape), make_seeds(probes)
    for isa in _C.supported_isas():
        _C.set_isa(isa)
        runs = []
        for threads in (1, 2, 3, 5):
            torch.set_num_threads(threads)
            states = make_states(model, probes, batch)
            runs.append((model.population_nats(tokens, targets, seeds, 0.1, states=states), *states))
        for run in runs[1:]:
            assert all(torch.equal(x, y) for x, y in zip(run, runs[0], strict=True)), isa


@each_cell
@pytest.mark.parametrize("batches", [(1, 3), (15, 20, 70)])
def test_a_sequence_does_not_depend_on_the_others(cell: str, batches: tuple[int, ...]) -> None:
    """Bit for bit, among few sequences and among many (where sums go in another order); nats but for float64's sums."""
    shape = Shape(20, 7, 2, 19, 70, 6)
    model, (tokens, targets), seeds = make_model(cell, shape), make_batch(shape), make_seeds(1)
    for isa in _C.supported_isas():
        _C.set_isa(isa)
        runs = []
        for batch in batches:
            states, part = model.population_states(1, batch), torch.full_like(targets[:batch], IGNORE_INDEX)
            part[0] = targets[0]
            nats = model.population_nats(tokens[:batch], part, seeds, 0.1, states=states)
            runs.append((nats, [state[..., 0, :] for state in states]))
        for nats, states in runs[1:]:
            torch.testing.assert_close(nats, runs[0][0], rtol=1e-13, atol=0)
            assert all(torch.equal(x, y) for x, y in zip(states, runs[0][1], strict=True)), isa


def test_a_batch_without_scored_positions_has_no_loss() -> None:
    model, (tokens, targets) = make_model("gru"), make_batch()
    targets.fill_(IGNORE_INDEX)
    for backend in ("cpu", "reference"):
        with zo.backend(backend):
            assert model.population_loss(tokens, targets, make_seeds(2), 0.1).isnan().all()
            assert torch.equal(model.population_nats(tokens, targets, make_seeds(2), 0.1), torch.zeros(2, 2).double())


def test_rows_follow_their_seeds() -> None:
    """Any order of the seeds, and strided ones; eps and -eps exchange the columns; eps = 0 is theta itself."""
    model, (tokens, targets), seeds = make_model("lstm"), make_batch(), make_seeds(6)
    losses = model.population_loss(tokens, targets, seeds, 0.1)
    assert len(losses.unique()) == 12
    assert torch.equal(model.population_loss(tokens, targets, seeds.flip(0), 0.1), losses.flip(0))
    assert torch.equal(model.population_loss(tokens, targets, seeds[::2], 0.1), losses[::2])
    assert torch.equal(model.population_loss(tokens, targets, seeds, -0.1), losses.flip(1))
    at_theta = model.population_loss(tokens, targets, seeds, 0.0)
    assert torch.equal(at_theta, at_theta[0, 0].expand(6, 2))
    assert float(at_theta[0, 0]) == pytest.approx(float(model.loss(tokens, targets).detach()), abs=TOLERANCE)
