"""What FlashLM refuses: one sentence that says what was wrong, and states as they were."""

import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.models.flashrnn.models import each_flash_cell
from tests.models.test_refusals import BAD_TARGETS, BAD_TOKENS, SEEDS, TOKENS, assert_one_sentence
from tests.recurrent import copies
from zo_kernels.models.flashrnn.choice import CELLS
from zo_kernels.models.flashrnn.language_model import FlashLM

BATCH = 3


def model_of(cell: str = "lstm", **options: object) -> FlashLM:
    return FlashLM(9, 4, 8, 2, cell=cell, seed=0, **options)


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((9, 4, 10, 4), {}, "hidden_size 10 is not divisible by num_heads 4"),
        ((0, 4, 8, 1), {}, "vocab_size must be a positive integer, not 0"),
        ((9, 4, 8.0, 1), {}, r"hidden_size must be a positive integer, not 8\.0"),
        ((9, 4, 8, 1), {"cell": "rnn"}, "unknown cell 'rnn': choose one of lstm, gru, elman, slstm"),
        (
            (9, 4, 8, 1),
            {"backend": "fused"},
            "unknown flashrnn backend 'fused': choose one of cuda, vanilla, cuda_fused, ",
        ),
    ],
)
def test_arguments(sizes: tuple[int, int, int, int], options: dict[str, str], message: str) -> None:
    assert_one_sentence(lambda: FlashLM(*sizes, **options), ValueError, message)


@each_flash_cell
@pytest.mark.parametrize("backend", ["cuda", "cuda_fused", "triton_fused"])
def test_a_backend_that_can_not_be_had(cell: str, backend: str) -> None:
    model, message = (
        model_of(cell, backend=backend),
        f"flashrnn's backend '{backend}' can't be used: it needs a CUDA devi",
    )
    for call in (
        lambda: model(TOKENS),
        lambda: model.loss(TOKENS, TOKENS),
        lambda: model.population_loss(TOKENS, TOKENS, SEEDS, 0.1),
    ):
        assert_one_sentence(call, RuntimeError, message)


def test_flashrnn_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from zo_kernels.models.flashrnn.load import flashrnn

    flashrnn.cache_clear()
    monkeypatch.setitem(sys.modules, "flashrnn", None)
    assert_one_sentence(lambda: model_of()(TOKENS), RuntimeError, "install it with `pip install flashrnn`")


@pytest.mark.parametrize(("tokens", "message"), BAD_TOKENS, ids=[message for _, message in BAD_TOKENS])
def test_tokens(tokens: Tensor, message: str) -> None:
    model, targets = model_of(), torch.zeros(tokens.shape, dtype=torch.int64)
    states = model.population_states(2, BATCH)
    before = copies(states)
    for call in (
        lambda: model(tokens),
        lambda: model.next_logits(tokens),
        lambda: model.population_loss(tokens, targets, SEEDS, 0.1, states=states),
        lambda: model.population(tokens, targets),
    ):
        assert_one_sentence(call, ValueError, message)
    if tokens.numel():
        assert_one_sentence(lambda: model.loss(tokens, targets), ValueError, message)
    assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True))


@pytest.mark.parametrize(("targets", "message"), BAD_TARGETS, ids=[message for _, message in BAD_TARGETS])
def test_targets(targets: Tensor, message: str) -> None:
    model = model_of()
    for call in (
        lambda: model.loss(TOKENS, targets),
        lambda: model.population_loss(TOKENS, targets, SEEDS, 0.1),
        lambda: model.population(TOKENS, targets),
    ):
        assert_one_sentence(call, ValueError, message)


@pytest.mark.parametrize(
    ("seeds", "eps", "precision", "error", "message"),
    [
        (
            SEEDS.int(),
            0.1,
            "float32",
            TypeError,
            r"seeds must be an int64 CPU tensor of one dimension, not torch.int32 \[2",
        ),
        (SEEDS[None], 0.1, "float32", TypeError, r"of one dimension, not torch.int64 \[1, 2\]"),
        (SEEDS, math.nan, "float32", ValueError, "eps is not finite: nan"),
        (SEEDS, 1e39, "float32", ValueError, r"eps is too large for float32: 1e\+39"),
        (SEEDS, 0.1, "float16", ValueError, "precision must be one of float32, bfloat16, not 'float16'"),
    ],
)
def test_seeds_eps_and_precision(
    seeds: Tensor, eps: float, precision: str, error: type[Exception], message: str
) -> None:
    model = model_of()
    assert_one_sentence(lambda: model.population_loss(TOKENS, TOKENS, seeds, eps, precision=precision), error, message)


SHAPE_OF_STATES = r"must be torch.float32 of shape \[2, 2, 2, 3, 4\] on cpu, not "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, c: (h,), "the cell lstm has 2 states, but 1 were given"),
        (lambda h, c: (h[:1], c), f"state h {SHAPE_OF_STATES}" r"torch.float32 of shape \[1, 2, 2, 3, 4\] on cpu"),
        (lambda h, c: (h.double(), c), f"state h {SHAPE_OF_STATES}torch.float64"),
        (lambda h, c: (h, c.transpose(0, 1)), "state c must be contiguous; pass state c.contiguous"),
    ],
)
def test_population_states(change: Callable[..., tuple[Tensor, ...]], message: str) -> None:
    model = model_of()
    states = model.population_states(2, BATCH)
    call = lambda: model.population_loss(TOKENS, TOKENS, SEEDS, 0.1, states=change(*states))  # noqa: E731
    assert_one_sentence(call, ValueError, message)


@each_flash_cell
def test_states_of_forward(cell: str) -> None:
    model = model_of(cell)
    message = (
        r"state h must be a floating dtype of shape \[2, 3, 4\] on cpu, not torch.float32 of shape \[2, 1, 4\] on cpu"
    )
    assert_one_sentence(lambda: model(TOKENS, model.initial_states(1)), ValueError, message)
    message = f"the cell {cell} has {CELLS[cell].states} states, but 0 were given"
    assert_one_sentence(lambda: model.next_logits(TOKENS, ()), ValueError, message)


def test_slstm_sequences_that_begin_among_others_that_do_not() -> None:
    """flashrnn's `vanilla` would take none of them for new, its `cuda` some."""
    model = model_of("slstm")
    _, states = model(TOKENS)
    states[2][:, 1] = 0
    message = "state n is 0 in some places only, but flashrnn's sLSTM starts all sequences of a call or none"
    assert_one_sentence(lambda: model(TOKENS, states), ValueError, message)
    carried = model.population_states(2, BATCH)
    model.population_loss(TOKENS, TOKENS, SEEDS, 0.1, states=carried)
    carried[2][0, 0, 0, 0] = 0
    before = copies(carried)
    assert_one_sentence(lambda: model.population_loss(TOKENS, TOKENS, SEEDS, 0.1, states=carried), ValueError, message)
    assert all(torch.equal(x, y) for x, y in zip(carried, before, strict=True))


def test_parameters_that_are_not_contiguous() -> None:
    model = model_of()
    model.output_weight = nn.Parameter(model.output_weight.detach().t().contiguous().t())
    message = "output_weight must be contiguous; pass"
    assert_one_sentence(lambda: model.population_loss(TOKENS, TOKENS, SEEDS, 0.1), ValueError, message)
