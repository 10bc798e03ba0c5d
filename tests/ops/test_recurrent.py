"""zo.ops.recurrent_nats and recurrent_logits as torch sees them, and what they refuse that no model would hand them."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import zo_kernels as zo
from tests.recurrent import SMALL, copies, each_cell, make_batch, make_model, make_seeds, make_states
from zo_kernels.backends.base import RecurrentWeights

TOKENS, TARGETS = make_batch()
SEEDS = make_seeds(2)


def weights_of(cell: str = "lstm", offsets: tuple[int, ...] = (0, 128, 512, 1024, 1152, 1408)) -> RecurrentWeights:
    return RecurrentWeights(cell, offsets, *(p.detach() for p in make_model(cell).parameters()))


def states_of(cell: str = "lstm") -> tuple[Tensor, ...]:
    return make_states(make_model(cell), 2, SMALL.batch)


@each_cell
def test_the_functions_are_those_of_the_models(cell: str) -> None:
    model = make_model(cell)
    offsets = tuple(zo.params.flat_offsets(model).values())
    weights, states, again = weights_of(cell, offsets), states_of(cell), states_of(cell)
    nats = zo.ops.recurrent_nats(weights, TOKENS, TARGETS, SEEDS, 0.1, states)
    assert torch.equal(nats, model.population_nats(TOKENS, TARGETS, SEEDS, 0.1, states=again))
    assert all(torch.equal(x, y) for x, y in zip(states, again, strict=True))
    start = model.initial_states(SMALL.batch)
    logits, last = model.next_logits(TOKENS, start)
    assert torch.equal(zo.ops.recurrent_logits(weights, TOKENS, start), logits)
    assert all(torch.equal(x, y) for x, y in zip(start, last, strict=True))


def test_an_offset_of_minus_one_is_not_perturbed() -> None:
    still = zo.ops.recurrent_nats(weights_of(offsets=(-1,) * 6), TOKENS, TARGETS, SEEDS, 0.1)
    assert torch.equal(still, still[0, 0].expand(2, 2))


def test_far_offsets() -> None:
    """Where the high half of the block index changes, and at the end of the index space."""
    weights = weights_of()
    with zo.backend("reference"):
        near = zo.ops.recurrent_nats(weights, TOKENS, TARGETS, SEEDS, 0.1)
    for first in (2**39 - 256, 2**40 + 128, 2**63 - 2048):
        far = weights._replace(offsets=tuple(first + offset for offset in weights.offsets))
        with zo.backend("reference"):
            expected = zo.ops.recurrent_nats(far, TOKENS, TARGETS, SEEDS, 0.1)
        actual = zo.ops.recurrent_nats(far, TOKENS, TARGETS, SEEDS, 0.1)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
        assert (expected - near).abs().max() > 0.01


def test_weights_may_require_gradients_but_none_are_made() -> None:
    model = make_model("gru")
    weights = RecurrentWeights("gru", (0,) * 6, *model.parameters())
    assert not zo.ops.recurrent_nats(weights, TOKENS, TARGETS, SEEDS, 0.1).requires_grad
    assert not zo.ops.recurrent_logits(weights, TOKENS, model.initial_states(SMALL.batch)).requires_grad


def test_backward_through_states_changed_meanwhile_raises() -> None:
    states = tuple(state.requires_grad_(True) * 2 for state in states_of())
    loss = sum((state * state).sum() for state in states)  # saves them
    with torch.no_grad():
        zo.ops.recurrent_nats(weights_of(), TOKENS, TARGETS, SEEDS, 0.1, states)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inference_mode() -> None:
    outside, expected_states = states_of(), states_of()
    expected = zo.ops.recurrent_nats(weights_of(), TOKENS, TARGETS, SEEDS, 0.1, expected_states)
    with torch.inference_mode():
        inside = copies(states_of())
        assert inside[0].is_inference()
        for states in (inside, outside):
            assert torch.equal(zo.ops.recurrent_nats(weights_of(), TOKENS, TARGETS, SEEDS, 0.1, states), expected)
            assert all(torch.equal(x, y) for x, y in zip(states, expected_states, strict=True))


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_torch_compile(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(zo.ops.recurrent_nats, fullgraph=True, backend=backend)
    for seed in range(3):
        states, expected_states, seeds = states_of(), states_of(), make_seeds(2, seed)
        expected = zo.ops.recurrent_nats(weights_of(), TOKENS, TARGETS, seeds, 0.1, expected_states)
        assert torch.equal(compiled(weights_of(), TOKENS, TARGETS, seeds, 0.1, states), expected)
        assert all(torch.equal(x, y) for x, y in zip(states, expected_states, strict=True))
    torch._dynamo.reset()


def on(device: str) -> tuple[RecurrentWeights, Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    weights = weights_of()
    weights = RecurrentWeights(
        weights.cell, weights.offsets, *(torch.empty_like(x, device=device) for x in weights.tensors)
    )
    tokens = torch.empty(3, 4, dtype=torch.int64, device=device)
    states = tuple(torch.empty(2, 2, 2, 3, 6, device=device) for _ in range(2))
    return weights, tokens, tokens.clone(), torch.empty(2, dtype=torch.int64, device=device), states


def check_shapes(device: str) -> None:
    weights, tokens, targets, seeds, states = on(device)
    nats = zo.ops.recurrent_nats(weights, tokens, targets, seeds, 0.1, states)
    assert (nats.shape, nats.dtype) == ((2, 2), torch.float64)
    logits = zo.ops.recurrent_logits(weights, tokens, tuple(state[0, 0] for state in states))
    assert (logits.shape, logits.dtype, logits.device.type) == ((3, 11), torch.float32, device)


def test_meta_tensors() -> None:
    check_shapes("meta")


def test_fake_tensors() -> None:
    with FakeTensorMode():
        check_shapes("cpu")


@pytest.mark.parametrize("argument", ["weights", "tokens", "targets", "seeds", "states"])
def test_a_meta_tensor_among_real_ones_is_refused(argument: str) -> None:
    """Nothing could be computed, so it must not look as if it had been."""
    arguments = {
        "weights": weights_of(), "tokens": TOKENS, "targets": TARGETS, "seeds": SEEDS, "states": states_of()
    }  # fmt: skip
    arguments[argument] = on("meta")[list(arguments).index(argument)]
    with pytest.raises((ValueError, TypeError), match=r"meta|CPU"):
        zo.ops.recurrent_nats(**arguments, eps=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "slstm"}, "unknown cell 'slstm': choose one of lstm, gru, elman"),
        ({"cell": "gru"}, r"input_weight must have shape \[3, 2, 6, 5\], not \[4, 2, 6, 5\]"),
        ({"offsets": (0,) * 5}, "there are 6, 8, 9 or 11 weights with an offset each, not 6 with 5"),
        ({"offsets": (0, 128, 256, 384, 512, 5)}, "offset must be a non-negative multiple of 128, not 5"),
        ({"offsets": (-128, 128, 256, 384, 512, 0)}, "offset must be a non-negative multiple of 128, not -128"),
        ({"offsets": (0, 2**63 - 128, 0, 0, 0, 0)}, r"offset \+ numel must stay below 2\^63"),
    ],
)
def test_weights(change: dict[str, object], message: str) -> None:
    weights, states = weights_of()._replace(**change), states_of()
    before = copies(states)
    with pytest.raises(ValueError, match=message):
        zo.ops.recurrent_nats(weights, TOKENS, TARGETS, SEEDS, 0.1, states)
    if "offsets" not in change:
        with pytest.raises(ValueError, match=message):
            zo.ops.recurrent_logits(weights, TOKENS, tuple(state[0, 0] for state in states))
    assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True))


def test_the_registered_ops_take_the_weights_of_a_model() -> None:
    tensors, states = list(weights_of().tensors[:5]), list(states_of())
    with pytest.raises(ValueError, match="there are 6, 8, 9 or 11 weights with an offset each, not 5 with 6"):
        torch.ops.zo_kernels.recurrent_nats(tensors, "lstm", [0] * 6, TOKENS, TARGETS, SEEDS, 0.1, states, "float32")
    with pytest.raises(ValueError, match="there are 6, 8, 9 or 11 weights with an offset each, not 5 with 5"):
        torch.ops.zo_kernels.recurrent_logits(tensors, "lstm", TOKENS, [state[0, 0] for state in states])


def test_weights_of_several_layers() -> None:
    model = make_model("lstm", SMALL._replace(layers=2, norm=True))
    weights = RecurrentWeights.of("lstm", (-1,) * 11, [p.detach() for p in model.parameters()])
    for change, message in (
        ({"upper_bias": weights.bias}, r"upper_bias must be \[L - 1, G, N, D\]"),
        ({"upper_bias": torch.cat([weights.upper_bias] * 2)}, r"upper_input_weight must have shape \[2, 4, 2, 6, 12\]"),
        ({"norm_bias": weights.norm_bias[:1]}, r"norm_bias must have shape \[2, 12\], not \[1, 12\]"),
    ):
        with pytest.raises(ValueError, match=message):
            zo.ops.recurrent_nats(weights._replace(**change), TOKENS, TARGETS, SEEDS, 0.1)
    with pytest.raises(ValueError, match="residual connections need a second layer"):
        zo.ops.recurrent_nats(weights_of()._replace(residual=True), TOKENS, TARGETS, SEEDS, 0.1)


def test_logits_need_states() -> None:
    for states, message in (
        ((), "the cell lstm has 2 states, but 0 were given"),
        (states_of(), r"state h must be torch.float32 of shape \[2, 3, 6\] on cpu, not torch.float32 of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            zo.ops.recurrent_logits(weights_of(), TOKENS, states)


def test_no_seeds() -> None:
    """As the reference has it: no rows."""
    with zo.backend("reference"):
        assert zo.ops.recurrent_nats(weights_of(), TOKENS, TARGETS, SEEDS[:0], 0.1).shape == (0, 2)
    assert zo.ops.recurrent_nats(weights_of(), TOKENS, TARGETS, SEEDS[:0], 0.1).shape == (0, 2)


def test_eps_too_large_for_float32() -> None:
    with pytest.raises(ValueError, match="eps is too large for float32: 1e\\+39"):
        zo.ops.recurrent_nats(weights_of(), TOKENS, TARGETS, SEEDS, 1e39)


def test_states_that_overlap_are_refused() -> None:
    h, _ = states_of()
    with pytest.raises(ValueError, match="overlap"):
        zo.ops.recurrent_nats(weights_of(), TOKENS, TARGETS, SEEDS, 0.1, (h, h))
