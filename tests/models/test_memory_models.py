"""What models with a memory do as every LanguageModel does: populations, segments, gradients, generation."""

import copy
import gc

import pytest
import torch
from torch import Tensor

import zo_kernels as zo
from tests.flat import flat, write_flat
from tests.memory_models import BATCH, SIZES, TIME, each_memory_model, make_memory_batch, make_memory_model, make_tokens
from tests.recurrent import make_seeds
from zo_kernels.models import DNC, IGNORE_INDEX, LanguageModel, PaperDNC, members

EPS = 0.05
TOLERANCE = 2e-5
"""Nats by which the mean over the scored positions may be off in float32, some ten products deep."""


def losses_by_moving(model: LanguageModel, seeds: Tensor, eps: float) -> Tensor:
    """Losses [n, 2] of perturbed copies; offsets are counted anew: in order, each at the next multiple of 128."""
    losses = []
    for seed in seeds.tolist():
        for alpha in (eps, -eps):
            moving, offset = copy.deepcopy(model), 0
            with torch.no_grad():
                for parameter in moving.parameters():
                    if parameter.requires_grad:
                        zo.ops.apply_probe_(parameter, alpha, seed, offset=offset)
                        offset += -(-parameter.numel() // 128) * 128
                losses.append(moving.loss(*make_memory_batch()))
    return torch.stack(losses).view(-1, 2)


@each_memory_model
@pytest.mark.parametrize("frozen", [(), ("embedding", "interface_bias"), ("output_weight",)])
def test_population_is_the_loss_of_moved_models(name: str, frozen: tuple[str, ...]) -> None:
    model, seeds = make_memory_model(name, torch.float64), make_seeds(3)
    for parameter_name in frozen:
        model.get_parameter(parameter_name).requires_grad_(False)
    losses = model.population_loss(*make_memory_batch(), seeds, EPS)
    assert (losses.shape, losses.dtype) == ((3, 2), torch.float64)
    torch.testing.assert_close(losses, losses_by_moving(model, seeds, EPS), rtol=0, atol=1e-12)
    assert model.population_loss(*make_memory_batch(), seeds[:0], EPS).shape == (0, 2)


@each_memory_model
def test_loss_differences_survive_float32(name: str) -> None:
    model, seeds = make_memory_model(name), make_seeds(20)
    losses = model.population_loss(*make_memory_batch(), seeds, 1e-3)
    exact = model.double().population_loss(*make_memory_batch(), seeds, 1e-3)
    torch.testing.assert_close(losses, exact, rtol=0, atol=TOLERANCE)
    differences = torch.stack([losses[:, 0] - losses[:, 1], exact[:, 0] - exact[:, 1]])
    assert torch.corrcoef(differences)[0, 1] > 0.999


@each_memory_model
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_parameters_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    model, seeds = make_memory_model(name, dtype), make_seeds(2)
    losses = model.population_loss(*make_memory_batch(), seeds, 1e-3)
    logits, states = model(make_tokens())
    assert logits.dtype == dtype
    assert {state.dtype for state in states} == {torch.float32}
    expected = model.float().population_loss(*make_memory_batch(), seeds, 1e-3)
    torch.testing.assert_close(losses, expected, rtol=0, atol=TOLERANCE)


@each_memory_model
@pytest.mark.parametrize("backend", ["cpu", "reference"])  # the kernel, and chunks of members in torch
def test_micro_batches_segments_and_chunks_change_rounding_only(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (tokens, targets), seeds = make_memory_model(name), make_memory_batch(), make_seeds(5)
    targets[:, 2:4] = IGNORE_INDEX  # a whole segment
    whole = model.population_loss(tokens, targets, seeds, EPS)
    with zo.backend(backend):
        check_parts(model, tokens, targets, seeds, whole, monkeypatch)


def check_parts(
    model: DNC | PaperDNC,
    tokens: Tensor,
    targets: Tensor,
    seeds: Tensor,
    whole: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert model.probes_at_once(BATCH) > 5
    monkeypatch.setattr(members, "_CPU_BYTES", 5 * members._CPU_BYTES // (2 * model.probes_at_once(BATCH)))
    assert model.probes_at_once(BATCH) == 2
    monkeypatch.setattr(members, "_OUTPUT_BYTES", 1)
    for micro_batch_size, segment_length in ((None, None), (2, None), (None, 1), (1, 4)):
        population = model.population(tokens, targets, micro_batch_size=micro_batch_size, segment_length=segment_length)
        torch.testing.assert_close(population.population_loss(seeds, EPS), whole, rtol=0, atol=TOLERANCE)


@each_memory_model
def test_offsets_are_those_of_the_optimizers_arena(name: str) -> None:
    model, seeds = make_memory_model(name), make_seeds(2)
    alone = model.population_loss(*make_memory_batch(), seeds, EPS)
    space = zo.params.ParameterSpace.of(list(model.parameters())[::-1])
    theta, losses = flat(space), []
    for seed in seeds.tolist():
        for alpha in (EPS, -EPS):
            write_flat(space, zo.ops.apply_probe(theta, alpha, seed))
            losses.append(model.loss(*make_memory_batch()).detach())
    write_flat(space, theta)
    within = model.population_loss(*make_memory_batch(), seeds, EPS)
    torch.testing.assert_close(within, torch.stack(losses).view(-1, 2), rtol=0, atol=TOLERANCE)
    assert (within - alone).abs().max() > 100 * TOLERANCE  # other elements, other signs
    del space
    gc.collect()


@each_memory_model
def test_gradients_are_the_slopes_of_the_loss(name: str) -> None:
    model, batch = make_memory_model(name, torch.float64), make_memory_batch()
    model.loss(*batch).backward()
    unseen = {"memory_norm_bias"}  # see PaperDNC
    for parameter_name, parameter in model.named_parameters():
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        losses = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(direction, alpha=step)
                losses.append(model.loss(*batch))
                parameter.add_(direction, alpha=-step)
        slope = (losses[0] - losses[1]) / 2e-6
        if parameter_name in unseen:
            assert parameter.grad is None
            assert slope == 0
        else:
            assert parameter.grad is not None
            torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-4, atol=1e-8)


@each_memory_model
def test_loss_is_the_mean_over_scored_positions(name: str) -> None:
    model, (tokens, targets) = make_memory_model(name, torch.float64), make_memory_batch()
    logits, _ = model(tokens)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(model.loss(tokens, targets), expected)
    assert model.loss(tokens, torch.full_like(targets, IGNORE_INDEX)).isnan()


@each_memory_model
def test_segments_continue_each_other(name: str) -> None:
    model, tokens = make_memory_model(name, torch.float64), make_tokens()
    whole, last = model(tokens)
    states, parts = None, []
    for segment in tokens.split([1, 3, 2], dim=1):
        logits, states = model(segment, states)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(states, last)
    assert [tuple(state.shape) for state in last] == [(BATCH, *shape) for shape in model.state_shapes.values()]


@each_memory_model
def test_next_logits_are_the_end_of_forward_and_write_nothing(name: str) -> None:
    model, tokens = make_memory_model(name), make_tokens()
    _, states = model(tokens[:, :2])
    before = [state.detach().clone() for state in states]
    logits, last = model.next_logits(tokens[:, 2:].int(), states)
    expected, expected_last = model(tokens[:, 2:], states)
    assert not any(x.requires_grad for x in (logits, *last))
    torch.testing.assert_close(logits, expected[:, -1].detach())
    torch.testing.assert_close(last, tuple(state.detach() for state in expected_last))
    assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True))
    assert all(
        torch.equal(x, y) for x, y in zip(model.next_logits(tokens)[1], model.next_logits(tokens)[1], strict=True)
    )


@each_memory_model
def test_population_states_start_as_sequences_do(name: str) -> None:
    model = make_memory_model(name)
    for state, initial in zip(model.population_states(4, BATCH), model.initial_states(BATCH), strict=True):
        assert torch.equal(state, initial.expand(4, 2, *initial.shape))
        assert state.is_contiguous()


@each_memory_model
def test_initial_parameters_follow_from_the_seed(name: str) -> None:
    state = torch.get_rng_state()
    first, second, other = (zo.models.build_model(name, **SIZES, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.output_weight, other.output_weight)
    half = type(first)(**SIZES, seed=1, dtype=torch.bfloat16)
    assert torch.equal(half.output_weight, first.output_weight.bfloat16())


@each_memory_model
def test_cdrge_learns_a_constant(name: str) -> None:
    model = zo.models.build_model(name, **SIZES, seed=0)
    tokens, targets = make_tokens(), torch.full((BATCH, TIME), 3)
    optimizer = zo.optim.CDRGE(model.parameters(), lr=0.2, eps=0.01, probes=16)
    losses = [optimizer.step(model.population(tokens, targets)) for _ in range(15)]
    assert losses[-1] < 0.5 * losses[0]


REFUSED = [
    ({"tokens": torch.full((2, 2), 7)}, ValueError, r"tokens must lie in \[0, 7\)"),
    ({"targets": torch.full((2, 2), 7)}, ValueError, r"targets must lie in \[0, 7\)"),
    ({"targets": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, "targets must be int64 of the tokens' shape"),
    ({"seeds": torch.zeros(2)}, TypeError, "seeds must be an int64 CPU tensor of one dimension"),
    ({"seeds": torch.zeros(2, 1, dtype=torch.int64)}, TypeError, "seeds must be an int64 CPU tensor of one dimension"),
    ({"eps": float("nan")}, ValueError, "eps is not finite: nan"),
    ({"precision": "bfloat16"}, ValueError, "has no bfloat16 products: use precision='float32'"),
    ({"precision": "float8"}, ValueError, "precision must be one of float32, bfloat16, not 'float8'"),
    ({"states": (torch.zeros(1),)}, ValueError, "states, but 1 were given"),
]


@each_memory_model
@pytest.mark.parametrize(("changes", "error", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_a_population_refuses(name: str, changes: dict, error: type[Exception], message: str) -> None:
    model = make_memory_model(name)
    arguments = {
        "tokens": torch.zeros(2, 2, dtype=torch.int64),
        "targets": torch.zeros(2, 2, dtype=torch.int64),
        "seeds": make_seeds(2),
        "eps": 0.1,
        "states": model.population_states(2, 2),
        "precision": "float32",
    } | changes
    before = [state.clone() for state in arguments["states"]]
    tokens, targets, seeds, eps, states, precision = arguments.values()
    with pytest.raises(error, match=message) as info:
        model.population_loss(tokens, targets, seeds, eps, states=states, precision=precision)
    assert "\n" not in str(info.value)
    assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True))


@each_memory_model
def test_states_of_another_shape_are_refused(name: str) -> None:
    model, tokens = make_memory_model(name), make_tokens()
    states = list(model.initial_states(BATCH))
    states[2] = states[2][:, :2]
    for call in (model, model.next_logits):
        with pytest.raises(ValueError, match=r"state memory must be a tensor of shape \[3, 4, 3\] on cpu, not"):
            call(tokens, tuple(states))
    wrong = tuple(state.double() for state in model.population_states(2, BATCH))
    with pytest.raises(ValueError, match=r"state h must be torch.float32 of shape \[2, 2, 3, 6\] on cpu, not torch.f"):
        model.population_loss(tokens, tokens, make_seeds(2), 0.1, states=wrong)
