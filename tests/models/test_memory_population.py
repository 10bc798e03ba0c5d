"""The kernel of the models with a memory: every instruction set against float64, and what its numbers depend on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zo_kernels as zo
from tests.memory_models import BATCH, TIME, each_memory_model, make_memory_batch, make_memory_model
from tests.recurrent import DTYPES, copies, make_seeds
from zo_kernels import _C
from zo_kernels.models import DNC, IGNORE_INDEX, PaperDNC, States, build_model

TOLERANCE = 2e-5
"""Nats by which a scored position may be off, and how much a state may: the rounding of float32.

Of 3,000 random models like those of `sized`, the worst position was off by 3e-6 and the worst state by 9e-6. A
LayerNorm of few numbers that are nearly equal enlarges errors up to 300 times, and sharp attention does so too, in
torch as here: with a hidden size of 2 to 4 a position was off by 2e-5.
"""

Model = DNC | PaperDNC


def sized(name: str, sizes: tuple[int, ...], dtype: torch.dtype, seed: int) -> Model:
    """A model with these sizes and non-trivial parameters, which keep pre-activations of the order of 1."""
    names = ("vocab_size", "embed_dim", "hidden_size", "memory_slots", "memory_width", "num_heads")
    model = build_model(name, **dict(zip(names, sizes, strict=True)))
    assert isinstance(model, Model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            fan_in = p.shape[-1] if p.dim() > 1 else 4
            drawn = torch.randn(p.shape, generator=generator) / fan_in**0.5
            p.copy_(drawn + (1 if "norm_weight" in parameter_name else 0))
            if parameter_name == "memory_norm_weight":  # scores of the order of 1 too: sharp attention enlarges errors
                p /= p.numel() ** 0.5
    return model.to(dtype)


def batch_of(model: Model, batch: int, time: int, ignored: float, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = (torch.randint(model.vocab_size, (batch, time), generator=generator) for _ in range(2))
    return tokens, targets.masked_fill(torch.rand(targets.shape, generator=generator) < ignored, IGNORE_INDEX)


def begun(model: Model, probes: int, batch: int, seed: int) -> States:
    """States that differ between members, where those of sequences that have begun lie."""
    generator = torch.Generator().manual_seed(seed)
    states = dict(zip(model.state_names, model.population_states(probes, batch), strict=True))
    for name, state in states.items():
        drawn = torch.rand(state.shape, generator=generator).to(state.dtype)
        states[name] = drawn / state.shape[-1] if "weights" in name or name in ("link", "precedence") else drawn
    if "link" in states:
        states["link"].diagonal(dim1=-2, dim2=-1).zero_()
    return tuple(states.values())


def exact(model: Model, tokens: Tensor, targets: Tensor, seeds: Tensor, eps: float, states: States = ()) -> Tensor:
    with zo.backend("reference"):
        return zo.ops.dnc_nats(model._dnc_weights(perturbed=True), tokens, targets, seeds, eps, states)


def assert_parity(model: Model, tokens: Tensor, targets: Tensor, seeds: Tensor, eps: float, states: States) -> None:
    expected_states = copies(states)
    expected = exact(model, tokens, targets, seeds, eps, expected_states)
    scored = int((targets != IGNORE_INDEX).sum())
    for isa in _C.supported_isas():
        _C.set_isa(isa)
        actual_states = copies(states)
        actual = model.population_nats(tokens, targets, seeds, eps, states=actual_states)
        what = lambda text: f"{isa}: {text}"  # noqa: B023, E731
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE * scored, msg=what)
        torch.testing.assert_close(actual_states, expected_states, rtol=0, atol=TOLERANCE, msg=what)


@settings(max_examples=60)
@given(
    name=st.sampled_from(["dnc", "paper-dnc"]),
    sizes=st.tuples(*(st.integers(low, high) for low, high in ((1, 40), (1, 20), (6, 40), (1, 40), (2, 36), (1, 3)))),
    batch=st.integers(1, 10),
    time=st.integers(1, 6),
    dtype=st.sampled_from(DTYPES),
    eps=st.sampled_from([0.0, 2**-10, -(2**-6), 0.1]),
    probes=st.integers(1, 2),
    with_states=st.booleans(),
    int32=st.booleans(),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**32),
)
def test_kernel_equals_the_reference(
    name: str,
    sizes: tuple[int, ...],
    batch: int,
    time: int,
    dtype: torch.dtype,
    eps: float,
    probes: int,
    with_states: bool,
    int32: bool,
    ignored: float,
    seed: int,
) -> None:
    model = sized(name, sizes, dtype, seed)
    tokens, targets = batch_of(model, batch, time, ignored, seed)
    states = begun(model, probes, batch, seed) if with_states else ()
    assert_parity(model, tokens.int() if int32 else tokens, targets, make_seeds(probes, seed), eps, states)


@each_memory_model
@pytest.mark.parametrize(
    ("sizes", "batch", "time"),
    [((9, 6, 8, 5, 4, 2), 2, 70), ((600, 70, 90, 140, 70, 2), 1, 3), ((7, 5, 6, 4, 3, 1), 21, 3)],
    ids=["several chunks", "more than a word of signs", "several groups"],
)
def test_sizes_beyond_one_chunk(name: str, sizes: tuple[int, ...], batch: int, time: int) -> None:
    model = sized(name, sizes, torch.float32, 0)
    tokens, targets = batch_of(model, batch, time, 0.3, 0)
    assert_parity(model, tokens, targets, make_seeds(2), 2**-7, begun(model, 2, batch, 0))


@each_memory_model
def test_the_reference_equals_the_batched_forward(name: str) -> None:
    """Two ways to the same number in float64: one member at a time, and a chunk of members."""
    model, (tokens, targets), seeds = make_memory_model(name, torch.float64), make_memory_batch(), make_seeds(3)
    model.controller_weight.requires_grad_(False)
    states, others = begun(model, 3, BATCH, 0), begun(model, 3, BATCH, 0)
    expected = model.population_nats(tokens, targets, seeds, 0.1, states=states)
    torch.testing.assert_close(exact(model, tokens, targets, seeds, 0.1, others), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(others, states, rtol=0, atol=1e-11)


@each_memory_model
def test_differences_correlate_with_float64(name: str) -> None:
    """What a step lives on, L+ - L-, follows float64 down to small eps."""
    model = make_memory_model(name)
    wide = make_memory_model(name, torch.float64)
    wide.load_state_dict(model.state_dict())
    (tokens, targets), seeds = batch_of(model, 4, 8, 0.1, 0), make_seeds(40)
    for eps, bar in ((2**-7, 1e-8), (2**-10, 1e-6)):
        expected = wide.population_loss(tokens, targets, seeds, eps)
        for isa in _C.supported_isas():
            _C.set_isa(isa)
            actual = model.population_loss(tokens, targets, seeds, eps)
            both = torch.stack([losses[:, 0] - losses[:, 1] for losses in (actual, expected)])
            assert 1 - float(torch.corrcoef(both)[0, 1]) < bar, isa
            assert float(both[0].norm() / both[1].norm()) == pytest.approx(1, abs=1e-4), isa


@each_memory_model
def test_neither_threads_nor_other_sequences_and_probes_matter(name: str) -> None:
    model, seeds = make_memory_model(name), make_seeds(3)
    tokens, targets = batch_of(model, 6, TIME, 0.2, 0)
    for isa in _C.supported_isas():
        _C.set_isa(isa)
        whole = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            states = begun(model, 3, 6, 0)
            whole.append((model.population_nats(tokens, targets, seeds, 0.1, states=states), states))
        torch.set_num_threads(2)
        for nats, states in whole[1:]:
            assert torch.equal(nats, whole[0][0])
            assert all(map(torch.equal, states, whole[0][1]))
        part = tuple(state[1:2, :, 5:].contiguous() for state in begun(model, 3, 6, 0))
        alone = model.population_nats(tokens[5:], targets[5:], seeds[1:2], 0.1, states=part)
        assert all(torch.equal(x, y[1:2, :, 5:]) for x, y in zip(part, whole[0][1], strict=True))
        singly = [model.population_nats(tokens[b : b + 1], targets[b : b + 1], seeds, 0.1) for b in range(6)]
        together = model.population_nats(tokens, targets, seeds, 0.1)
        assert torch.equal(sum(singly, torch.zeros(3, 2, dtype=torch.float64)), together)
        assert alone.isfinite().all()


@each_memory_model
def test_a_loss_is_not_finite_where_the_reference_is_not(name: str) -> None:
    """And the probes after it, which use its buffers, are as they would be without it."""
    model, (tokens, targets) = make_memory_model(name), make_memory_batch(2, 3)
    tokens[0, 0] = 0
    torch.set_num_threads(1)
    expected = model.population_loss(tokens, targets, make_seeds(1), 0.1)
    states = begun(model, 2, 2, 0)
    good = model.population_nats(tokens, targets, make_seeds(1).repeat(2), 0.1, states=copies(states))
    for state in states:
        state[0] = float("nan")
    assert torch.equal(model.population_nats(tokens, targets, make_seeds(1).repeat(2), 0.1, states=states)[1], good[1])
    for parameter_name, parameter in model.named_parameters():
        if parameter_name == "memory_norm_bias":  # of which the loss does not depend
            continue
        for value in (float("nan"), float("inf")):
            kept = parameter.detach().clone()
            with torch.no_grad():
                parameter.view(-1)[0] = value
                reference = exact(model, tokens, targets, make_seeds(1), 0.1)
                for isa in _C.supported_isas():
                    _C.set_isa(isa)
                    actual = model.population_loss(tokens, targets, make_seeds(1), 0.1)
                    assert not (actual.isfinite() & ~reference.isfinite()).any(), (parameter_name, value, isa)
                parameter.copy_(kept)
    _C.set_isa("")
    assert torch.equal(model.population_loss(tokens, targets, make_seeds(1), 0.1), expected)


@each_memory_model
@pytest.mark.parametrize("batch", [1, 11])
def test_score_counts_as_the_reference(name: str, batch: int) -> None:
    model = make_memory_model(name)
    tokens, targets = batch_of(model, batch, 9, 0.2, 1)
    with zo.backend("reference"):
        expected = model.score(tokens, targets)
    for isa in _C.supported_isas():
        _C.set_isa(isa)
        nats, correct = model.score(tokens, targets)
        assert abs(nats - expected[0]) < TOLERANCE * targets.numel()
        assert correct == expected[1]
    with torch.no_grad():
        model.output_weight.zero_()
        model.output_bias.zero_()
    assert model.score(tokens, targets)[1] == int((targets == 0).sum())  # of equal logits the first counts


@each_memory_model
def test_what_the_kernel_does_not_take_runs_in_torch(name: str) -> None:
    model, batch, seeds = make_memory_model(name), make_memory_batch(), make_seeds(2)
    assert model._has_kernel()
    expected = model.population_loss(*batch, seeds, 0.1)
    model.interface_bias.data = model.interface_bias.data.double()
    assert not model._has_kernel()
    torch.testing.assert_close(model.population_loss(*batch, seeds, 0.1), expected, rtol=0, atol=TOLERANCE)
    assert not make_memory_model(name, torch.float64)._has_kernel()
    with zo.backend("reference"):
        assert not make_memory_model(name)._has_kernel()
