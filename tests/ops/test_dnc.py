"""zo.ops.dnc_nats and dnc_score as torch sees them, and what they refuse that no model would hand them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import zo_kernels as zo
from tests.memory_models import BATCH, each_memory_model, make_memory_batch, make_memory_model
from tests.recurrent import copies, make_seeds
from zo_kernels.backends.dnc.weights import DNC_MODELS, DncWeights
from zo_kernels.models import build_model

TOKENS, TARGETS = make_memory_batch()
SEEDS = make_seeds(2)


def weights_of(name: str = "dnc", dtype: torch.dtype = torch.float32) -> DncWeights:
    weights = make_memory_model(name, dtype)._dnc_weights(perturbed=True)
    return weights._replace(tensors=tuple(x.detach() for x in weights.tensors))


def states_of(name: str = "dnc", probes: int = 2) -> tuple[Tensor, ...]:
    return make_memory_model(name).population_states(probes, BATCH)


WEIGHTS, STATES = weights_of(), states_of()


def test_names_and_shapes_are_those_of_the_models() -> None:
    for name in DNC_MODELS:
        model = build_model(name, 11, embed_dim=5, hidden_size=7, memory_slots=6, memory_width=3, num_heads=2)
        sizes = model._dnc_weights(perturbed=False).sizes
        assert sizes.weights(name) == {key: tuple(p.shape) for key, p in model.named_parameters()}
        assert list(sizes.states(name).items()) == list(model.state_shapes.items())


@each_memory_model
def test_the_functions_are_those_of_the_models(name: str) -> None:
    model, states, again = make_memory_model(name), states_of(name), states_of(name)
    nats = zo.ops.dnc_nats(weights_of(name), TOKENS, TARGETS, SEEDS, 0.1, states)
    assert torch.equal(nats, model.population_nats(TOKENS, TARGETS, SEEDS, 0.1, states=again))
    assert all(map(torch.equal, states, again))
    found = zo.ops.dnc_score(weights_of(name), TOKENS, TARGETS, model.initial_states(BATCH))
    assert tuple(x.item() for x in found) == model.score(TOKENS, TARGETS)
    assert zo.ops.dnc_nats(weights_of(name), TOKENS, TARGETS, SEEDS[:0], 0.1).shape == (0, 2)


@each_memory_model
def test_float64_is_the_reference(name: str) -> None:
    weights = weights_of(name, torch.float64)
    expected = make_memory_model(name, torch.float64).population_nats(TOKENS, TARGETS, SEEDS, 0.1)
    torch.testing.assert_close(zo.ops.dnc_nats(weights, TOKENS, TARGETS, SEEDS, 0.1), expected, rtol=0, atol=1e-11)
    states = make_memory_model(name, torch.float64).initial_states(BATCH)
    nats, correct = zo.ops.dnc_score(weights, TOKENS, TARGETS, states)
    assert (float(nats), int(correct)) == pytest.approx(make_memory_model(name, torch.float64).score(TOKENS, TARGETS))


def test_offsets() -> None:
    weights = weights_of()
    still = zo.ops.dnc_nats(weights._replace(offsets=(-1,) * 7), TOKENS, TARGETS, SEEDS, 0.1)
    assert torch.equal(still, still[0, 0].expand(2, 2))
    far = weights._replace(offsets=tuple(2**39 - 128 * k for k in range(7)))
    with zo.backend("reference"):
        expected = zo.ops.dnc_nats(far, TOKENS, TARGETS, SEEDS, 0.1)
    torch.testing.assert_close(zo.ops.dnc_nats(far, TOKENS, TARGETS, SEEDS, 0.1), expected, rtol=0, atol=1e-4)


def test_a_write_is_visible_to_autograd_and_inference_mode_works() -> None:
    states = states_of()
    versions = [state._version for state in states]
    expected = zo.ops.dnc_nats(weights_of(), TOKENS, TARGETS, SEEDS, 0.1, states)
    assert all(state._version > version for state, version in zip(states, versions, strict=True))
    with torch.inference_mode():
        assert torch.equal(zo.ops.dnc_nats(weights_of(), TOKENS, TARGETS, SEEDS, 0.1, copies(states_of())), expected)


def check_shapes(device: str) -> None:
    def empty(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=device)

    weights = WEIGHTS._replace(memory=empty(WEIGHTS.memory), tensors=tuple(map(empty, WEIGHTS.tensors)))
    tokens, targets, seeds, states = empty(TOKENS), empty(TARGETS), empty(SEEDS), tuple(map(empty, STATES))
    nats = zo.ops.dnc_nats(weights, tokens, targets, seeds, 0.1, states)
    assert (nats.shape, nats.dtype) == ((2, 2), torch.float64)
    total, correct = zo.ops.dnc_score(weights, tokens, targets, tuple(state[0, 0] for state in states))
    assert (total.shape, total.dtype, correct.dtype, total.device.type) == ((), torch.float64, torch.int64, device)


def test_meta_and_fake_tensors() -> None:
    check_shapes("meta")
    with FakeTensorMode():
        check_shapes("cpu")


def test_a_meta_tensor_among_real_ones_is_refused() -> None:
    with pytest.raises(ValueError, match="a tensor is on meta, but the weights on cpu"):
        zo.ops.dnc_nats(weights_of(), TOKENS.to("meta"), TARGETS, SEEDS, 0.1)


FOUR = torch.zeros(4)
REFUSED = [
    (lambda w: w._replace(model="ntm"), {}, ValueError, "unknown model 'ntm': choose one of dnc, paper-dnc"),
    (lambda w: w._replace(tensors=w.tensors[:6]), {}, ValueError, "has 7 weights, but 6 were given"),
    (lambda w: w._replace(offsets=w.offsets[:6]), {}, ValueError, "there are 7 weights, but 6 offsets"),
    (lambda w: w._replace(offsets=(5,) * 7), {}, ValueError, "offset must be a non-negative multiple of 128, not 5"),
    (lambda w: w._replace(tensors=(FOUR, *w.tensors[1:])), {}, ValueError, "embedding must have two dimensions, not"),
    (lambda w: w._replace(tensors=(*w.tensors[:6], FOUR)), {}, ValueError, r"output_bias must have shape \[7\], not"),
    (lambda w: w._replace(memory=FOUR), {}, ValueError, r"memory must be \[N, W\], not of shape \[4\]"),
    (lambda w: w._replace(memory=w.memory.double()), {}, ValueError, r"memory must be torch.float32 of shape \[4, 3\]"),
    (lambda w: w._replace(memory=torch.zeros(4, 30)), {}, ValueError, "too few for the other weights and the memory"),
    (
        lambda w: w._replace(tensors=(w.tensors[0].double(), *w.tensors[1:])),
        {},
        ValueError,
        "embedding is torch.float64 on cpu, but output_bias torch.float32 on cpu",
    ),
    (lambda w: w, {"tokens": TOKENS + 7}, ValueError, r"tokens must lie in \[0, 7\)"),
    (lambda w: w, {"targets": TARGETS[:1]}, ValueError, "targets must be int64 of the tokens' shape"),
    (lambda w: w, {"seeds": SEEDS.int()}, TypeError, "seeds must be an int64 CPU tensor of one dimension"),
    (lambda w: w, {"eps": 1e39}, ValueError, "eps is too large for float32"),
    (lambda w: w, {"states": states_of()[:3]}, ValueError, "the model dnc has 9 states, but 3 were given"),
    (lambda w: w, {"states": states_of(probes=3)}, ValueError, r"state h must be torch.float32 of shape \[2, 2, 3, 6"),
    (lambda w: w, {"states": (states_of()[0],) * 2 + states_of()[2:]}, ValueError, "states overlap in memory"),
]


@pytest.mark.parametrize(("change", "arguments", "error", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_refuses(change, arguments, error, message) -> None:
    given = {"tokens": TOKENS, "targets": TARGETS, "seeds": SEEDS, "eps": 0.1, "states": states_of()} | arguments
    before = copies(given["states"])
    with pytest.raises(error, match=message) as info:
        zo.ops.dnc_nats(change(weights_of()), **given)
    assert "\n" not in str(info.value)
    assert all(map(torch.equal, given["states"], before))
