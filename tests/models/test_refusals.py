"""What the models refuse: one sentence that says what was wrong, and states as they were."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import zo_kernels as zo
from tests.recurrent import copies, each_cell, make_seeds, make_states, tokens_for
from zo_kernels.models import LSTM, MODELS, RecurrentLM

VOCAB, BATCH, TIME = 9, 3, 2
TOKENS = torch.tensor([[0, 1], [2, 3], [4, 8]])
SEEDS = make_seeds(2)


def model_of(cell: str = "lstm", **options: object) -> RecurrentLM:
    return MODELS[cell](VOCAB, 4, 8, 2, seed=0, **options)


def assert_one_sentence(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as info:
        call()
    text = str(info.value)
    assert info.type is error
    assert "\n" not in text
    assert not text.endswith(".")
    assert len(text) < 200


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((9, 4, 10, 4), "hidden_size 10 is not divisible by num_heads 4"),
        ((0, 4, 8, 1), "vocab_size must be a positive integer, not 0"),
        ((9, -1, 8, 1), "embed_dim must be a positive integer, not -1"),
        ((9, 4, 0, 1), "hidden_size must be a positive integer, not 0"),
        ((9, 4, 8, 0), "num_heads must be a positive integer, not 0"),
        ((9, 4, 8.0, 1), "hidden_size must be a positive integer, not 8.0"),
    ],
)
@each_cell
def test_sizes(cell: str, sizes: tuple[int, int, int, int], message: str) -> None:
    assert_one_sentence(lambda: MODELS[cell](*sizes), ValueError, message)


BAD_TOKENS = [
    (TOKENS.clone().fill_(9), r"tokens must lie in \[0, 9\), but range from 9 to 9"),
    (torch.tensor([[0, 1], [2, 3], [4, -1]]), r"tokens must lie in \[0, 9\), but range from -1 to 4"),
    (TOKENS.float(), "tokens must be int64 or int32, not torch.float32"),
    (TOKENS.to(torch.uint8), "tokens must be int64 or int32, not torch.uint8"),
    (TOKENS[0], r"a non-empty \[B, T\] tensor, not of shape \[2\]"),
    (TOKENS[None], r"a non-empty \[B, T\] tensor, not of shape \[1, 3, 2\]"),
    (TOKENS[:, :0], r"a non-empty \[B, T\] tensor, not of shape \[3, 0\]"),
    (TOKENS[:0], r"a non-empty \[B, T\] tensor, not of shape \[0, 2\]"),
]

BAD_TARGETS = [
    (TOKENS + 1, r"targets must lie in \[0, 9\) or be -100, but range from 1 to 9"),
    (TOKENS - 1, r"targets must lie in \[0, 9\) or be -100, but range from -1 to 7"),
    (TOKENS - 101, r"targets must lie in \[0, 9\) or be -100, but range from -101 to -93"),
    (TOKENS[:, :1], r"targets must be int64 of the tokens' shape \[3, 2\], not torch.int64 of shape \[3, 1\]"),
    (TOKENS.int(), r"targets must be int64 of the tokens' shape \[3, 2\], not torch.int32 of shape \[3, 2\]"),
    (TOKENS.float(), "targets must be int64 .* not torch.float32"),
]


@pytest.mark.parametrize(("tokens", "message"), BAD_TOKENS, ids=[message for _, message in BAD_TOKENS])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_tokens(tokens: Tensor, message: str, backend: str) -> None:
    model, targets = model_of(), torch.zeros(tokens.shape, dtype=torch.int64)
    states = make_states(model, 2, BATCH)
    before = copies(states)
    with zo.backend(backend):
        for call in (
            lambda: model(tokens),
            lambda: model.next_logits(tokens),
            lambda: model.population_loss(tokens, targets, SEEDS, 0.1, states=states),
            lambda: model.population_nats(tokens, targets, SEEDS, 0.1, states=states),
            lambda: model.population(tokens, targets),
        ):
            assert_one_sentence(call, ValueError, message)
    if tokens.numel():
        assert_one_sentence(lambda: model.loss(tokens, targets), ValueError, message)
    assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True))


@pytest.mark.parametrize(("targets", "message"), BAD_TARGETS, ids=[message for _, message in BAD_TARGETS])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_targets(targets: Tensor, message: str, backend: str) -> None:
    model = model_of()
    states = make_states(model, 2, BATCH)
    before = copies(states)
    with zo.backend(backend):
        for call in (
            lambda: model.loss(TOKENS, targets),
            lambda: model.population_loss(TOKENS, targets, SEEDS, 0.1, states=states),
            lambda: model.population_nats(TOKENS, targets, SEEDS, 0.1, states=states),
            lambda: model.population(TOKENS, targets),
        ):
            assert_one_sentence(call, ValueError, message)
    assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True))


@pytest.mark.parametrize(
    ("seeds", "eps", "error", "message"),
    [
        (SEEDS.int(), 0.1, TypeError, r"seeds must be an int64 CPU tensor of one dimension, not torch.int32 \[2\]"),
        (SEEDS.double(), 0.1, TypeError, "seeds must be an int64 CPU tensor .* not torch.float64"),
        (SEEDS[None], 0.1, TypeError, r"of one dimension, not torch.int64 \[1, 2\]"),
        (SEEDS[0], 0.1, TypeError, r"of one dimension, not torch.int64 \[\]"),
        (SEEDS, math.nan, ValueError, "eps is not finite: nan"),
        (SEEDS, -math.inf, ValueError, "eps is not finite: -inf"),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_seeds_and_eps(seeds: Tensor, eps: float, error: type[Exception], message: str, backend: str) -> None:
    model = model_of()
    states = make_states(model, 2, BATCH)
    before = copies(states)
    with zo.backend(backend):
        call = lambda: model.population_loss(TOKENS, TOKENS, seeds, eps, states=states)  # noqa: E731
        assert_one_sentence(call, error, message)
        call = lambda: model.population(TOKENS, TOKENS).population_loss(seeds, eps)  # noqa: E731
        if seeds.dim() == 1:
            assert_one_sentence(call, error, message)
    assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True))


SHAPE_OF_STATES = r"must be torch.float32 of shape \[2, 2, 2, 3, 4\] on cpu, not "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, c: (h,), "the cell lstm has 2 states, but 1 were given"),
        (lambda h, c: (h, c, c), "the cell lstm has 2 states, but 3 were given"),
        (lambda h, c: (h[:1], c), f"state h {SHAPE_OF_STATES}" r"torch.float32 of shape \[1, 2, 2, 3, 4\] on cpu"),
        (lambda h, c: (h, c[0]), f"state c {SHAPE_OF_STATES}" r"torch.float32 of shape \[2, 2, 3, 4\] on cpu"),
        (lambda h, c: (h, c[..., :2, :]), f"state c {SHAPE_OF_STATES}"),
        (lambda h, c: (h.double(), c), f"state h {SHAPE_OF_STATES}torch.float64"),
        (lambda h, c: (h, c.bfloat16()), f"state c {SHAPE_OF_STATES}torch.bfloat16"),
        (lambda h, c: (h, c.transpose(0, 1)), "state c must be contiguous; pass state c.contiguous"),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_population_states(change: Callable[..., tuple[Tensor, ...]], message: str, backend: str) -> None:
    model = model_of()
    states = make_states(model, 2, BATCH)
    before = copies(states)
    call = lambda: model.population_loss(TOKENS, TOKENS, SEEDS, 0.1, states=change(*states))  # noqa: E731
    with zo.backend(backend):
        assert_one_sentence(call, ValueError, message)
    assert all(torch.equal(x, y) for x, y in zip(states, before, strict=True))


def test_population_states_of_float64_parameters() -> None:
    model = model_of(dtype=torch.float64)
    states = tuple(state.float() for state in model.population_states(2, BATCH))
    call = lambda: model.population_loss(TOKENS, TOKENS, SEEDS, 0.1, states=states)  # noqa: E731
    assert_one_sentence(call, ValueError, r"state h must be torch.float64 of shape \[2, 2, 2, 3, 4\]")


@each_cell
def test_states_of_forward_and_next_logits(cell: str) -> None:
    model = model_of(cell)
    tokens = tokens_for(model, BATCH, TIME)
    message = r"state h must have shape \[L \* N, B, D\] = \[2, 3, 4\], not \[2, 1, 4\]"
    assert_one_sentence(lambda: model(tokens, model.initial_states(1)), ValueError, message)
    message = (
        r"state h must be torch.float32 of shape \[2, 3, 4\] on cpu, not torch.float32 of shape \[2, 1, 4\] on cpu"
    )
    assert_one_sentence(lambda: model.next_logits(tokens, model.initial_states(1)), ValueError, message)
    count = len(model.initial_states(BATCH))
    message = f"the cell {cell} has {count} states, but 0 were given"
    assert_one_sentence(lambda: model.next_logits(tokens, ()), ValueError, message)


@each_cell
def test_forward_counts_its_states(cell: str) -> None:
    model = model_of(cell)
    wrong = (*model.initial_states(BATCH), model.initial_states(BATCH)[0])
    assert_one_sentence(lambda: model(TOKENS, wrong), ValueError, f"the cell {cell} has . states, but . were given")
    assert_one_sentence(lambda: model(TOKENS, ()), ValueError, f"the cell {cell} has . states, but 0 were given")


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("output_weight", lambda x: x.t().contiguous().t(), ValueError, "output_weight must be contiguous; pass"),
        (
            "output_bias",
            lambda x: x.double(),
            ValueError,
            "output_bias is torch.float64 on cpu, but bias torch.float32",
        ),
        ("embedding", lambda x: x[:-1], ValueError, r"output_weight must have shape \[8, 8\], not \[9, 8\]"),
        ("bias", lambda x: x[:3], ValueError, r"bias must have shape \[4, 2, 4\], not \[3, 2, 4\]"),
        ("bias", lambda x: x[0], ValueError, r"embedding must be \[V, E\] and bias \[G, N, D\]"),
        ("embedding", lambda x: x[0], ValueError, r"embedding must be \[V, E\] and bias \[G, N, D\]"),
        ("recurrent_weight", lambda x: x[:, :1], ValueError, r"recurrent_weight must have shape \[4, 2, 4, 4\]"),
        ("input_weight", lambda x: x[..., :3], ValueError, r"input_weight must have shape \[4, 2, 4, 4\]"),
        ("output_bias", lambda x: x[:, None], ValueError, r"output_bias must have shape \[9\], not \[9, 1\]"),
    ],
)
def test_replaced_parameters(
    name: str, change: Callable[[Tensor], Tensor], error: type[Exception], message: str
) -> None:
    model = model_of()
    setattr(model, name, nn.Parameter(change(model.get_parameter(name).detach())))
    targets = torch.zeros_like(TOKENS)
    assert_one_sentence(lambda: model.population_loss(TOKENS * 0, targets, SEEDS, 0.1), error, message)
    assert_one_sentence(lambda: model.next_logits(TOKENS * 0), error, message)


def test_dtypes_the_kernels_do_not_know() -> None:
    model = model_of()
    for name, parameter in list(model.named_parameters()):
        setattr(model, name, nn.Parameter(parameter.detach().to(torch.float8_e4m3fn)))
    message = "parameter embedding has dtype torch.float8_e4m3fn; zo_kernels trains torch.float32, "
    assert_one_sentence(lambda: model.population_loss(TOKENS, TOKENS, SEEDS, 0.1), TypeError, message)


def test_a_cell_the_ops_do_not_know() -> None:
    class Unknown(LSTM):
        cell = "lstm"

    model = Unknown(VOCAB, 4, 8, 2)
    Unknown.cell = "slstm"
    message = "unknown cell 'slstm': choose one of lstm, gru, elman"
    assert_one_sentence(lambda: model.population_loss(TOKENS, TOKENS, SEEDS, 0.1), ValueError, message)
