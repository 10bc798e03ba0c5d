"""`LanguageModel.score`: the nats of the loss and the number of right predictions, in segments or at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zo_kernels as zo
from tests.recurrent import DTYPES, TOLERANCE, Shape, make_batch, make_model, tolerance_of
from zo_kernels.models import IGNORE_INDEX, MODEL_NAMES, MODELS, LanguageModel, build_model, has_memory
from zo_kernels.tasks import score

SIZES = {"vocab_size": 11, "embed_dim": 5, "hidden_size": 12, "num_heads": 2, "seed": 3}
MEMORY = {"memory_slots": 4, "memory_width": 3}


def written_out(model: LanguageModel, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[float, int]:
    with torch.no_grad():
        logits, _ = model.double()(tokens)
    found = score(logits, targets)
    return found.nats, found.correct


@pytest.mark.parametrize("length", [1, 3, 100])
@pytest.mark.parametrize("name", MODEL_NAMES)
def test_it_is_the_score_of_the_forward(name: str, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(name, **SIZES, **(MEMORY if has_memory(name) else {}))
    tokens, targets = make_batch(Shape(11, 5, 2, 6, 4, 9))
    monkeypatch.setattr(type(model), "_scored_at_once", lambda *_: length)
    nats, correct = model.score(tokens, targets)
    expected, right = written_out(model, tokens, targets)
    assert abs(nats - expected) <= TOLERANCE * targets.numel()
    assert correct == right


sizes = st.builds(
    Shape,
    vocab=st.integers(1, 90),
    embed=st.integers(1, 20),
    heads=st.integers(1, 3),
    head_dim=st.integers(1, 40),
    batch=st.integers(1, 70),
    time=st.integers(1, 12),
    layers=st.integers(1, 2),
    norm=st.just(False),
    residual=st.just(False),
)


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from(sorted(MODELS)), st.sampled_from(DTYPES), st.sampled_from([0.0, 0.3, 0.9]))
def test_the_kernel_counts_as_the_reference(shape: Shape, cell: str, dtype: torch.dtype, ignored: float) -> None:
    model = make_model(cell, shape, dtype)
    tokens, targets = make_batch(shape, ignored=ignored)
    found = model.score(tokens, targets)
    with zo.backend("reference"):
        states = tuple(state.float() for state in model.initial_states(shape.batch))
        nats, correct = zo.ops.recurrent_score(model._weights(), tokens, targets, states)
        logits = torch.stack(
            [model.next_logits(tokens[:, : t + 1])[0] for t in range(shape.time)], 1
        )  # to see whether the two largest logits are apart
    assert abs(found[0] - float(nats)) <= tolerance_of(model) * targets.numel()
    best = logits.topk(min(2, shape.vocab)).values
    unclear = int((best[..., 0] - best[..., -1] < 2 * tolerance_of(model)).sum()) if shape.vocab > 1 else 0
    assert abs(found[1] - int(correct)) <= unclear


@pytest.mark.parametrize("vocab", [3, 50, 700])
def test_of_equal_logits_the_first_counts(vocab: int) -> None:
    model = make_model("lstm", Shape(vocab, 4, 1, 8, 5, 6))
    with torch.no_grad():
        model.output_weight.zero_()
        model.output_bias.zero_()
    tokens, targets = make_batch(Shape(vocab, 4, 1, 8, 5, 6))
    for first in (0, 1, vocab - 1):
        with torch.no_grad():
            model.output_bias[first:] = 1.0
        assert model.score(tokens, targets)[1] == int((targets == first).sum())
        with torch.no_grad():
            model.output_bias.zero_()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_it_does_not_depend_on_the_threads(threads: int) -> None:
    model, (tokens, targets) = make_model("gru"), make_batch()
    before, expected = torch.get_num_threads(), model.score(tokens, targets)
    try:
        torch.set_num_threads(threads)
        assert model.score(tokens, targets) == expected
    finally:
        torch.set_num_threads(before)


def test_no_scored_position_and_wrong_batches() -> None:
    model, (tokens, targets) = make_model("lstm"), make_batch()
    assert model.score(tokens, torch.full_like(targets, IGNORE_INDEX)) == (0.0, 0)
    with pytest.raises(ValueError, match="targets must be int64 of the tokens' shape"):
        model.score(tokens, targets[:, 1:])
    with pytest.raises(ValueError, match="token"):
        model.score(tokens + 100, targets)
