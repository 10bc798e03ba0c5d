"""The tasks whose examples a rule makes, each against its rule in plain Python; which lengths occur, and where."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tasks.make import ALGORITHMIC, algorithmic
from zo_kernels.tasks import Batch

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
each_task = pytest.mark.parametrize("name", ALGORITHMIC)


def numeral(value: int, base: int, length: int) -> str:
    return "".join(DIGITS[value // base**place % base] for place in reversed(range(length)))


def total(question: str, base: int) -> str:
    """07+35 -> 042."""
    one, other = question.split("+")
    return numeral(int(one, base) + int(other, base), base, len(one) + 1)


RULES: dict[str, tuple[str, str, Callable[[str, int], str]]] = {
    "copy": (r"([a-z]+)", "|", lambda question, _: question),
    "reverse": (r"([a-z]+)", "|", lambda question, _: question[::-1]),
    "sort": (r"([a-z]+)", "|", lambda question, _: "".join(sorted(question))),
    "repeat-copy": (r"([a-z]+)[1-9]", "|", lambda question, _: question[:-1] * int(question[-1]) + "."),
    "add": (r"([0-9a-z]+)\+[0-9a-z]+", "=", total),
}
"""Of each task with a question: what one looks like, with its letters as the group; the separator; the answer."""


def rows(task: Any, batch: Batch) -> Iterator[tuple[str, str]]:
    """Tokens and targets of each row as text; _ is a place that is not scored."""
    symbols = [*task.symbols, "_"]
    for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        yield (
            "".join(symbols[token] for token in tokens),
            "".join(symbols[-1 if token == -100 else token] for token in targets),
        )


def length_of(name: str, tokens: str, targets: str) -> int:
    if name == "rolling-sum":
        return len(targets.rstrip("_"))
    shape, separator, _ = RULES[name]
    match = re.fullmatch(shape, tokens.partition(separator)[0])
    assert match
    return len(match[1])


def lengths(name: str, task: Any, batches: list[Batch]) -> Counter[int]:
    return Counter(length_of(name, *row) for batch in batches for row in rows(task, batch))


def width(name: str, longest: int, max_repeats: int) -> int:
    """Of a batch, as the task's docstring gives it."""
    return {
        "repeat-copy": longest + 1 + max_repeats * longest + 1,
        "add": 3 * longest + 2,
        "rolling-sum": longest,
    }.get(name, 2 * longest)


@each_task
@settings(max_examples=30, deadline=None)
@given(
    batch_size=st.integers(1, 5),
    max_length=st.integers(1, 7),
    alphabet_size=st.integers(2, 26),
    max_repeats=st.integers(1, 9),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**63),
)
def test_a_row_is_its_rule_and_only_the_answer_is_scored(
    name: str, batch_size: int, max_length: int, alphabet_size: int, max_repeats: int, seed: int, step: int
) -> None:
    options = {"max_repeats": max_repeats} if name == "repeat-copy" else {}
    task = algorithmic(
        name, batch_size=batch_size, max_length=max_length, alphabet_size=alphabet_size, seed=seed, **options
    )
    batch = task.batch(step)
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.tokens.shape == batch.targets.shape == (batch_size, width(name, max_length, max_repeats))
    for tokens, targets in rows(task, batch):
        assert 1 <= length_of(name, tokens, targets) <= max_length
        if name == "rolling-sum":
            read = targets.rstrip("_")
            sums = [sum(DIGITS.index(x) for x in tokens[: i + 1]) % alphabet_size for i in range(len(read))]
            assert read == "".join(DIGITS[s] for s in sums)
            assert tokens[len(read) :] == "0" * (max_length - len(read))
            continue
        _, separator, rule = RULES[name]
        question = tokens.partition(separator)[0]
        answer = rule(question, alphabet_size)
        blank = len(tokens) - len(question) - len(answer)
        assert tokens == question + separator + answer[:-1] + blank * separator
        assert targets == len(question) * "_" + answer + blank * "_"


@each_task
def test_examples_as_they_are_written(name: str) -> None:
    task = algorithmic(name, batch_size=200, max_length=2, alphabet_size=10)
    written = {
        "copy": ("ba|b", "__ba"),
        "reverse": ("ba|a", "__ab"),
        "sort": ("ba|a", "__ab"),
        "repeat-copy": ("ba2|baba||", "___baba.__"),
        "add": ("07+35=04", "_____042"),
        "rolling-sum": ("86", "84"),
    }[name]
    seen = [row for step in range(200) for row in rows(task, task.batch(step))]
    assert written in seen


@each_task
def test_lengths_and_letters_are_uniform(name: str) -> None:
    task = algorithmic(name, batch_size=4000)
    batch = task.batch(0)
    shares = [count / 4000 for count in lengths(name, task, [batch]).values()]
    assert len(shares) == 5
    assert max(abs(share - 0.2) for share in shares) < 0.03
    read = Counter(c for tokens, _ in rows(task, batch) for c in tokens.split("|")[0].split("=")[0] if c in "abcd0123")
    if name == "rolling-sum":
        read["0"] -= 4000 * 5 - int((batch.targets >= 0).sum())  # rows are filled up with zeros
    if name == "repeat-copy":
        read = Counter({c: n for c, n in read.items() if c in "abcd"})
    assert len(read) == 4
    assert max(abs(count / read.total() - 0.25) for count in read.values()) < 0.02


def test_both_numbers_and_all_repeats_occur() -> None:
    add = algorithmic("add", batch_size=2000, max_length=1, alphabet_size=10)
    assert len({tokens[:3] for tokens, _ in rows(add, add.batch(0))}) == 100
    repeat = algorithmic("repeat-copy", batch_size=3000, max_repeats=9)
    numbers = Counter(tokens.partition("|")[0][-1] for tokens, _ in rows(repeat, repeat.batch(0)))
    assert sorted(numbers) == list("123456789")
    assert max(abs(count / 3000 - 1 / 9) for count in numbers.values()) < 0.03


@each_task
@pytest.mark.parametrize(("longer_length", "longest"), [(None, 8), (5, 5), (13, 13)])
def test_longer_examples_have_no_training_length(name: str, longer_length: int | None, longest: int) -> None:
    task = algorithmic(name, batch_size=64, max_length=4, longer_length=longer_length)
    sets = task.validation_batches()
    assert list(sets) == ["validation", "longer"]
    assert set(lengths(name, task, sets["validation"])) == {1, 2, 3, 4}
    assert set(lengths(name, task, sets["longer"])) == set(range(5, longest + 1))
    for batches, length in ((sets["validation"], 4), (sets["longer"], longest)):
        assert {tuple(batch.tokens.shape) for batch in batches} == {(64, width(name, length, 3))}
    assert task.test_batches() == {}


@each_task
def test_a_curriculum_grows_the_lengths_and_ends(name: str) -> None:
    task = algorithmic(name, batch_size=300, curriculum=8)
    longest = [max(lengths(name, task, [task.batch(step)])) for step in range(10)]
    assert longest == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    full = algorithmic(name, batch_size=300)
    assert {task.batch(step).tokens.shape for step in range(10)} == {full.batch(0).tokens.shape}
    for step in (8, 9, 1000):
        assert all(torch.equal(*pair) for pair in zip(task.batch(step), full.batch(step), strict=True))
    for batches, others in zip(task.validation_batches().values(), full.validation_batches().values(), strict=True):
        assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(batches, others, strict=True))


def questions(name: str, length: int, base: int) -> Iterator[str]:
    """All questions of a length, each as likely as the next."""
    letters = DIGITS[10:] if name in ("copy", "reverse", "sort", "repeat-copy") else DIGITS
    for word in map("".join, product(letters[:base], repeat=length)):
        if name == "repeat-copy":
            yield from (word + number for number in "123")
        elif name == "add":
            yield from (f"{word}+{other}" for other in map("".join, product(DIGITS[:base], repeat=length)))
        else:
            yield word


@each_task
def test_reference_losses_are_those_of_all_questions(name: str) -> None:
    """The bigram entropy by enumeration: alphabet of 3, lengths 1 to 3."""
    weights: dict[str, Counter[str]] = defaultdict(Counter)
    for length in (1, 2, 3):
        asked = list(questions(name, length, 3))
        for question in asked:
            if name == "rolling-sum":
                pairs = [(x, DIGITS[sum(map(int, question[: i + 1])) % 3]) for i, x in enumerate(question)]
            else:
                answer = RULES[name][2](question, 3)
                pairs = list(zip("|" + answer[:-1], answer, strict=True))
            for token, target in pairs:
                weights[token][target] += 1 / len(asked)
    nats = -sum(w * math.log(w / of.total()) for of in weights.values() for w in of.values())
    entropy = nats / sum(of.total() for of in weights.values())

    losses = algorithmic(name, max_length=3, alphabet_size=3, seed=9).reference_losses
    assert losses["chance"] == math.log(4 if name == "repeat-copy" else 3)
    assert losses.get("bigram entropy", losses["chance"]) == pytest.approx(entropy, abs=5e-3)
    assert ("bigram entropy" in losses) == (name not in ("copy", "reverse"))
    assert list(algorithmic(name, alphabet_size=65).reference_losses) == ["chance"]  # a sample would say too little


@pytest.mark.parametrize("alphabet_size", [2, 10, 26, 52, 53, 62, 70])
@each_task
def test_every_token_has_a_symbol_of_its_own(name: str, alphabet_size: int) -> None:
    task = algorithmic(name, alphabet_size=alphabet_size)
    assert len(task.symbols) == len(set(task.symbols)) == task.vocab_size
    assert all(len(symbol) == 1 and symbol.isprintable() and not symbol.isspace() for symbol in task.symbols)
    marks = {"repeat-copy": "|123.", "add": "=+", "rolling-sum": ""}.get(name, "|")
    assert "".join(task.symbols[alphabet_size:]) == marks
    assert "".join(task.symbols[:2]) == ("01" if name in ("add", "rolling-sum") else "ab")


@each_task
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("batch_size", 0, "batch_size must be at least 1, not 0"),
        ("max_length", 0, "max_length must be at least 1, not 0"),
        ("alphabet_size", 1, "alphabet_size must be at least 2, not 1"),
        ("curriculum", -1, "curriculum must be at least 0, not -1"),
        ("longer_length", 5, "longer_length must be above max_length 5, not 5"),
    ],
)
def test_bad_options_are_refused(name: str, option: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        algorithmic(name, **{option: value})


@pytest.mark.parametrize(
    ("value", "message"),
    [(0, "max_repeats must be at least 1, not 0"), (10, "max_repeats must be at most 9, not 10")],
)
def test_repeats_out_of_range_are_refused(value: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        algorithmic("repeat-copy", max_repeats=value)
