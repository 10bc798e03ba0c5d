"""The copy task: what a row looks like, what is scored, and which lengths occur."""

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zo_kernels.tasks import Copy


def rows(task: Copy, batch):
    """(length, tokens, targets) of every row; the length is where the first separator stands."""
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        yield tokens.index(task.separator), tokens, targets


@settings(max_examples=40, deadline=None)
@given(
    batch_size=st.integers(1, 5),
    max_length=st.integers(1, 7),
    alphabet_size=st.integers(2, 30),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**63),
)
def test_answer_is_the_word_and_only_the_answer_is_scored(batch_size, max_length, alphabet_size, seed, step) -> None:
    task = Copy(batch_size=batch_size, max_length=max_length, alphabet_size=alphabet_size, seed=seed)
    batch = task.batch(step)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.shape == batch.targets.shape == (batch_size, 2 * max_length)
    for length, tokens, targets in rows(task, batch):
        word, blank = tokens[:length], 2 * max_length - 2 * length
        assert 1 <= length <= max_length
        assert all(0 <= letter < alphabet_size for letter in word)
        assert tokens == [*word, task.separator, *word[:-1], *[task.separator] * blank]
        assert targets == [*[-100] * length, *word, *[-100] * blank]


def test_lengths_and_letters_are_uniform() -> None:
    task = Copy(batch_size=4000, max_length=5, alphabet_size=4, seed=3)
    batch = task.batch(0)
    lengths = torch.tensor([length for length, _, _ in rows(task, batch)])
    share = torch.bincount(lengths, minlength=6)[1:] / 4000
    assert (share - 0.2).abs().max() < 0.03
    letters = batch.targets[batch.targets >= 0]
    assert (torch.bincount(letters, minlength=4) / letters.numel() - 0.25).abs().max() < 0.02


def test_validation_has_the_training_lengths_and_longer_ones() -> None:
    task = Copy(batch_size=64, max_length=4, alphabet_size=5, seed=0)
    sets = task.validation_batches()
    assert list(sets) == ["validation", "longer"]
    lengths = {
        name: {length for batch in batches for length, _, _ in rows(task, batch)} for name, batches in sets.items()
    }
    assert lengths == {"validation": {1, 2, 3, 4}, "longer": {5, 6, 7, 8}}


def test_batches_are_a_function_of_seed_and_step() -> None:
    def make(seed: int) -> Copy:
        return Copy(batch_size=8, max_length=6, alphabet_size=9, seed=seed)

    task, again = make(1), make(1)
    forward = [task.batch(step) for step in range(4)]
    torch.manual_seed(5)
    again.validation_batches()
    for step in (2, 0, 3, 1):
        assert torch.equal(again.batch(step).tokens, forward[step].tokens)
        assert torch.equal(again.batch(step).targets, forward[step].targets)
    others = [make(seed).batch(0) for seed in (2, 2**64 - 1, 2**64 - 2)]
    different = [*forward, *others, *task.validation_batches()["validation"]]
    assert len({tuple(batch.tokens.flatten().tolist()) for batch in different}) == len(different)


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ((64, 5, 4, 0), "af072bdb8721cca7ee403f12dcc8817fdb01f2c71e0946001b65416ec6c002b2"),
        ((3, 7, 30, 2**64 - 1), "fa1eb2e616f1ad0aa6007fc02f7ddc869f3c36ee89ba87549f15b8be0e803998"),
        ((1, 1, 2, 5), "d3d6dd31e3057854b210a866f3c0ac7217b8fe6de8886bcb5bdd81765bcc1a7f"),
    ],
)
def test_batches_of_a_seed_never_change(options: tuple[int, int, int, int], digest: str) -> None:
    """Recorded runs and their figures are those of these batches."""
    batch_size, max_length, alphabet_size, seed = options
    task = Copy(batch_size=batch_size, max_length=max_length, alphabet_size=alphabet_size, seed=seed)
    batches = [task.batch(step) for step in (0, 1, 2**40)]
    batches += [batch for batches in task.validation_batches().values() for batch in batches]
    data = b"".join(tensor.numpy().tobytes() for batch in batches for tensor in batch)
    assert hashlib.sha256(data).hexdigest() == digest


def test_vocabulary_and_chance() -> None:
    task = Copy(batch_size=1, max_length=1, alphabet_size=4, seed=0)
    assert task.vocab_size == 5
    assert task.reference_losses == {"chance": math.log(4)}
    assert task.test_batches() == {}


@pytest.mark.parametrize("alphabet_size", [2, 26, 52, 53, 60])
def test_every_token_has_a_symbol_of_its_own(alphabet_size: int) -> None:
    task = Copy(batch_size=1, max_length=1, alphabet_size=alphabet_size, seed=0)
    assert len(task.symbols) == len(set(task.symbols)) == task.vocab_size == alphabet_size + 1
    assert all(len(symbol) == 1 and symbol.isprintable() and not symbol.isspace() for symbol in task.symbols)
    assert task.symbols[task.separator] == "|"
    assert "".join(task.symbols[:2]) == "ab"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("batch_size", 0, "batch_size must be at least 1, not 0"),
        ("max_length", 0, "max_length must be at least 1, not 0"),
        ("alphabet_size", 1, "alphabet_size must be at least 2, not 1"),
    ],
)
def test_bad_options_are_refused(option: str, value: int, message: str) -> None:
    options = {"batch_size": 2, "max_length": 3, "alphabet_size": 4, "seed": 0, option: value}
    with pytest.raises(ValueError, match=message):
        Copy(**options)
