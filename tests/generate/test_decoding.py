"""zo_kernels.generate as a library: reading, choosing, and the distribution of what is chosen."""

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zo_kernels.generate import DecodingState, LoadedRun, generate, load_run, load_state, read_prompt, save_state
from zo_kernels.models import LSTM

# pytest's fixtures are made once for all examples, and none is changed by one.
shared = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sampled(run: LoadedRun, state: DecodingState, count: int = 30, seed: int = 0, top_k: int | None = None) -> str:
    generator = torch.Generator().manual_seed(seed)
    return run.decode(generate(run.model, state, count, top_k=top_k, generator=generator))


def same(first: DecodingState, second: DecodingState) -> bool:
    pairs = zip((*first.states, first.logits), (*second.states, second.logits), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@shared
@given(parts=st.lists(st.text("abcd|", min_size=1, max_size=9), min_size=1, max_size=4))
def test_a_prompt_may_be_cut_anywhere_and_the_state_saved_in_between(
    parts: list[str], run: LoadedRun, tmp_path: Path
) -> None:
    whole = read_prompt(run.model, run.encode("".join(parts)))
    state = None
    for part in parts:
        save_state(tmp_path / "state", read_prompt(run.model, run.encode(part), state), run)
        state = load_state(tmp_path / "state", run)
    assert state is not None
    assert same(state, whole)
    assert sampled(run, state) == sampled(run, whole)


def test_reading_what_was_generated_gives_the_state_to_go_on_from(run: LoadedRun) -> None:
    start = read_prompt(run.model, run.encode("ab|"))
    generator = torch.Generator().manual_seed(3)
    first = run.decode(generate(run.model, start, 7, generator=generator))
    second = run.decode(generate(run.model, read_prompt(run.model, run.encode(first), start), 5, generator=generator))
    assert first + second == sampled(run, start, 12, seed=3)


def test_states_are_left_as_they_are(run: LoadedRun) -> None:
    state = read_prompt(run.model, run.encode("ab|"))
    assert sampled(run, state) == sampled(run, state)
    assert same(state, read_prompt(run.model, run.encode("ab|")))
    assert state.logits.shape == (1, 5)
    assert not state.logits.requires_grad


def test_greedy_is_the_argmax_of_the_plain_forward(run: LoadedRun) -> None:
    text = "ab|"
    for _ in range(12):
        logits, _ = run.model(run.encode(text))
        text += run.symbols[int(logits[0, -1].argmax())]
    state = read_prompt(run.model, run.encode("ab|"))
    assert text == "ab|" + run.decode(generate(run.model, state, 12, temperature=0))
    assert text == "ab|" + sampled(run, state, 12, top_k=1)


def test_seed_decides_and_the_global_random_state_is_left_alone(run: LoadedRun) -> None:
    state = read_prompt(run.model, run.encode("d|"))
    before = torch.get_rng_state()
    texts = [sampled(run, state, seed=seed) for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]
    assert torch.equal(torch.get_rng_state(), before)


def test_tokens_come_one_at_a_time(run: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    state = read_prompt(run.model, run.encode("d|"))
    reads = 0

    def counted(*arguments: Any) -> DecodingState:
        nonlocal reads
        reads += 1
        return read_prompt(*arguments)

    monkeypatch.setattr("zo_kernels.generate.decoding.read_prompt", counted)
    for done, _ in enumerate(islice(generate(run.model, state, 10**9), 5)):
        assert reads == done
    reads = 0
    assert len(list(generate(run.model, state, 3))) == 3
    assert reads == 2  # nothing is computed after the last token
    assert list(generate(run.model, state, 0)) == []


MODEL = LSTM(4, 2, 2, seed=0)


def draws(logits: list[float], count: int, temperature: float, top_k: int | None = None) -> list[int]:
    """Tokens drawn independently of each other from one vector of logits."""
    state = DecodingState(MODEL.initial_states(1), torch.tensor([logits]))
    generator = torch.Generator().manual_seed(0)
    return [
        next(generate(MODEL, state, 1, temperature=temperature, top_k=top_k, generator=generator)) for _ in range(count)
    ]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 2, 3, 9])
def test_tokens_have_the_distribution_of_the_logits(temperature: float, top_k: int | None) -> None:
    logits, count = [0.3, -1.0, 1.1, 0.0], 4000
    tokens = draws(logits, count, temperature, top_k)
    kept = sorted(range(4), key=lambda token: -logits[token])[:top_k]
    weights = {token: math.exp(logits[token] / temperature) for token in kept}
    assert set(tokens) == set(kept)
    chi_square = sum(
        (tokens.count(token) - expected) ** 2 / expected
        for token, expected in ((token, count * weight / sum(weights.values())) for token, weight in weights.items())
    )
    assert chi_square < 16.3  # of three degrees of freedom, one run in a thousand; the seed is fixed


def test_all_of_the_vocabulary_is_no_restriction() -> None:
    logits = [0.3, -1.0, 1.1, 0.0]
    assert draws(logits, 50, 1.0, 4) == draws(logits, 50, 1.0) == draws(logits, 50, 1.0, 10**9)


def test_of_equal_logits_the_first_are_kept() -> None:
    assert set(draws([0.0, *[1.0] * 1000], 100, 1.0, 3)) == {1, 2, 3}


@pytest.mark.parametrize(
    ("logits", "temperature", "token"),
    [
        ([0.0, 2.0, 2.0, 1.0], 0.0, 1),  # the first of equals
        ([0.0, 1.0, 2.0, 1.0], 5e-324, 2),
        ([3e38, -3e38, 0.0, 0.0], 1e-300, 0),
        ([-math.inf, -math.inf, 0.0, -math.inf], 100.0, 2),
    ],
)
def test_extremes_are_no_surprise(logits: list[float], temperature: float, token: int) -> None:
    assert set(draws(logits, 20, temperature)) == {token}
    assert set(draws(logits, 20, temperature, top_k=2 if temperature else 4)) == {token}


@pytest.mark.parametrize("logits", [[math.nan, 0, 0, 0], [math.inf, 0, 0, 0], [-math.inf] * 4])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_give_no_token(logits: list[float], temperature: float) -> None:
    with pytest.raises(FloatingPointError, match="the largest logit is"):
        draws(logits, 1, temperature)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"count": -1}, "count must be at least 0, not -1"),
        ({"temperature": -0.5}, "temperature must be finite and at least 0, not -0.5"),
        ({"temperature": math.nan}, "temperature must be finite and at least 0, not nan"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
    ],
)
def test_wrong_values_are_refused_before_the_first_token(wrong: dict[str, Any], sentence: str) -> None:
    state = DecodingState(MODEL.initial_states(1), torch.zeros(1, 4))
    with pytest.raises(ValueError, match=sentence):
        generate(MODEL, state, **{"count": 1, **wrong})


def test_what_is_not_one_text_is_refused(folders: dict[str, Path]) -> None:
    run = load_run(folders["lstm"])
    with pytest.raises(ValueError, match="one text at a time"):
        read_prompt(run.model, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="one text at a time"):
        read_prompt(run.model, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="non-empty"):
        read_prompt(run.model, run.encode(""))
