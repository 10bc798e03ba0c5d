"""zo.ops.recurrent_activity: what it refuses, and what it leaves alone."""

import pytest
import torch

import zo_kernels as zo
from tests.recurrent import SMALL, copies, make_batch, make_model, make_seeds, make_states
from zo_kernels.backends import BACKENDS

TOKENS, TARGETS = make_batch()
SEEDS = make_seeds(2)


def weights_of(**shape):
    return make_model("lstm", SMALL._replace(**shape))._weights(perturbed=False)


def test_backends_agree():
    estimate = zo.ops.recurrent_activity(weights_of(), TOKENS, TARGETS, SEEDS, 2**-7)
    with zo.backend("reference"):
        expected = zo.ops.recurrent_activity(weights_of(), TOKENS, TARGETS, SEEDS, 2**-7)
    for gradient, wanted in zip(estimate.gradients, expected.gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-2 * float(wanted.abs().max()))
    gpu = super(type(BACKENDS["cuda"]), BACKENDS["cuda"])  # that of all backends for GPUs
    assert gpu.recurrent_activity.__func__.__qualname__ == "GpuBackend.recurrent_activity"


def test_states_are_read_and_not_changed():
    model = make_model("lstm")
    states = tuple(state[0, 0] for state in make_states(model, 1, SMALL.batch))
    before = copies(states)
    found = zo.ops.recurrent_activity(weights_of(), TOKENS, TARGETS, SEEDS, 0.01, states)
    assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True))
    assert float(found.clean) == pytest.approx(float(model.segment_nats(TOKENS, TARGETS, states)[0].detach()), abs=1e-5)


def test_without_probes_the_output_layer_alone_has_a_gradient():
    found = zo.ops.recurrent_activity(weights_of(), TOKENS, TARGETS, SEEDS[:0], 0.01)
    assert [bool(gradient.any()) for gradient in found.gradients] == [False] * 4 + [True] * 2
    assert found.nats.shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "sigma must be positive, not 0.0"),
        ({"sigma": 1e39}, "sigma is too large for float32"),
        ({"credit_length": 0}, "credit_length must be at least 1, not 0"),
        ({"first_sequence": 2**32 - 2}, r"sequences must have numbers in \[0, 2\^32\), but 3 begin at 4294967294"),
        ({"first_sequence": -1}, r"sequences must have numbers in \[0, 2\^32\)"),
        ({"weights": weights_of(layers=2)}, "for a single layer without layer norm: use ZeroOrder or BPTT"),
        ({"weights": weights_of(norm=True)}, "for a single layer without layer norm: use ZeroOrder or BPTT"),
        ({"tokens": TOKENS + 11}, r"tokens must lie in \[0, 11\)"),
        ({"states": (torch.zeros(1),)}, "the cell lstm has 2 states, but 1 were given"),
    ],
)
def test_refusals(change, message):
    arguments = {"weights": weights_of(), "tokens": TOKENS, "targets": TARGETS, "seeds": SEEDS, "sigma": 0.01}
    with pytest.raises(ValueError, match=message):
        zo.ops.recurrent_activity(**{**arguments, **change})
