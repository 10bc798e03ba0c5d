"""The batched forward on the CPU against the reference: cells, dtypes, chunks, states, unscored positions."""

import pytest
import torch

from tests.recurrent import SMALL, TOLERANCE, Shape, copies, each_cell, make_batch, make_model, make_seeds, make_states
from zo_kernels.backends import BACKENDS
from zo_kernels.backends.recurrent import batched, memory, reference

SHAPES = (
    SMALL,
    Shape(vocab=2, embed=1, heads=1, head_dim=1, batch=1, time=1),
    Shape(vocab=5, embed=3, heads=3, head_dim=2, batch=4, time=7),
    Shape(vocab=5, embed=3, heads=3, head_dim=2, batch=4, time=7, layers=3, norm=True, residual=True),
    Shape(vocab=5, embed=3, heads=2, head_dim=3, batch=2, time=5, layers=2),
)


def both(model, tokens, targets, seeds, eps, states):
    """Nats and last states, by this and by the reference."""
    weights, results = model._weights(), []
    for by_reference in (False, True):
        carried = copies(states)
        if by_reference:
            nats = reference.recurrent_nats(weights, tokens, targets, seeds.numpy(), eps, carried)
        else:
            nats = batched.recurrent_nats(BACKENDS["cpu"], weights, tokens, targets, seeds, eps, carried)
        results.append((nats, carried))
    return results


@each_cell
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("carried", [False, True])
def test_is_the_reference(cell, shape, dtype, carried):
    model = make_model(cell, shape, dtype)
    tokens, targets = make_batch(shape)
    seeds = make_seeds(3)
    states = make_states(model, 3, shape.batch) if carried else ()
    (nats, last), (expected, expected_last) = both(model, tokens, targets, seeds, 0.1, states)
    scored = int((targets >= 0).sum())
    tolerance = 1e-12 if dtype == torch.float64 else TOLERANCE
    assert nats.dtype == torch.float64
    assert nats.shape == (3, 2)
    assert (nats - expected).abs().max() <= tolerance * scored
    for state, wanted in zip(last, expected_last, strict=True):
        assert (state - wanted).abs().max() <= tolerance


@each_cell
def test_chunks_and_blocks_do_not_show(cell, monkeypatch):
    model = make_model(cell)
    tokens, targets = make_batch()
    seeds, states = make_seeds(5), make_states(model, 5, SMALL.batch)
    (whole, last), _ = both(model, tokens, targets, seeds, 0.1, states)
    monkeypatch.setattr(memory, "CPU_BYTES", 1)
    monkeypatch.setattr(batched, "_HIDDEN_BYTES", 1)
    assert batched.probes_at_once(model._weights(), 3, SMALL.batch) == 1
    (nats, last_of_parts), _ = both(model, tokens, targets, seeds, 0.1, states)
    assert (nats - whole).abs().max() <= TOLERANCE
    for state, wanted in zip(last_of_parts, last, strict=True):
        assert (state - wanted).abs().max() <= TOLERANCE


def test_chunks_fit_the_budget(monkeypatch):
    weights = make_model("lstm")._weights()
    few = batched.probes_at_once(weights, 11, 3)
    monkeypatch.setattr(memory, "CPU_BYTES", 4 * memory.CPU_BYTES)
    assert batched.probes_at_once(weights, 11, 3) in range(4 * few, 4 * few + 4)
    assert batched.probes_at_once(weights, 1000, 1000) < few


def test_no_probes():
    model = make_model("gru")
    tokens, targets = make_batch()
    nats = batched.recurrent_nats(
        BACKENDS["cpu"], model._weights(), tokens, targets, make_seeds(0), 0.1, make_states(model, 0, SMALL.batch)
    )
    assert nats.shape == (0, 2)


def test_frozen_parameters_stay():
    model = make_model("lstm")
    model.recurrent_weight.requires_grad_(False)
    model.output_bias.requires_grad_(False)
    tokens, targets = make_batch()
    (nats, _), (expected, _) = both(model, tokens, targets, make_seeds(2), 0.1, ())
    assert (nats - expected).abs().max() <= TOLERANCE * int((targets >= 0).sum())


def test_alpha_and_seeds_are_copied_once(monkeypatch):
    """All parameters of a chunk read the same tensors on the weights' device."""
    seen, apply_probes = [], type(BACKENDS["cpu"]).apply_probes

    def seeing(self, x, out, alpha, seeds, offset):
        seen.append((x.device, alpha, seeds))
        apply_probes(self, x, out, alpha, seeds, offset)

    monkeypatch.setattr(type(BACKENDS["cpu"]), "apply_probes", seeing)
    model = make_model("lstm")
    nats, _ = both(model, *make_batch(), make_seeds(3), 0.1, ())
    assert len(seen) == 6
    assert len({(id(alpha), id(seeds)) for _, alpha, seeds in seen}) == 1
    assert all(device == alpha.device == seeds.device for device, alpha, seeds in seen)
    assert nats[0].shape == (3, 2)


@each_cell
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_logits_are_the_references(cell, shape, dtype):
    model = make_model(cell, shape, dtype)
    tokens, _ = make_batch(shape)
    states = [state[0, 0] for state in make_states(model, 1, shape.batch)]
    carried = [state.clone() for state in states]
    weights = model._weights(perturbed=False)
    expected = reference.recurrent_logits(weights, tokens, states)
    actual = batched.recurrent_logits(weights, tokens, carried)
    tolerance = 1e-12 if dtype == torch.float64 else 4 * TOLERANCE
    assert actual.dtype == expected.dtype
    assert (actual - expected).abs().max() <= tolerance
    for state, wanted in zip(carried, states, strict=True):
        assert (state - wanted).abs().max() <= tolerance


def test_gpu_backends_copy_no_weights_to_float64(monkeypatch):
    monkeypatch.setattr(reference, "perturb", None)
    model, (tokens, _) = make_model("gru"), make_batch()
    for name in ("cuda", "triton"):
        states = [state[0, 0] for state in make_states(model, 1, SMALL.batch)]
        logits = BACKENDS[name].recurrent_logits(model._weights(perturbed=False), tokens, states)
        assert logits.shape == (SMALL.batch, SMALL.vocab)
