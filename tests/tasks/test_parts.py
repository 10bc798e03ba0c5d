"""How a text is divided, and what is said of one that is too short."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zo_kernels.tasks import PennTreebank, Text
from zo_kernels.tasks.parts import DEFAULT_PARTS, Parts, TextLength, read_parts, require_context

SHARES = st.tuples(*[st.integers(1, 200)] * 3).map(lambda n: Parts(*(Fraction(x, sum(n)) for x in n)))


@given(st.integers(0, 10**12))
def test_the_default_is_as_ever(count: int) -> None:
    part = count // 20
    assert DEFAULT_PARTS.sizes(count) == read_parts("0.9,0.05,0.05").sizes(count) == (count - 2 * part, part, part)


@given(SHARES, st.integers(0, 10**6))
def test_sizes_are_the_shares_to_one_token(parts: Parts, count: int) -> None:
    sizes = parts.sizes(count)
    assert sum(sizes) == count
    assert all(abs(size - count * share) < 2 for size, share in zip(sizes, parts, strict=True))


@pytest.mark.parametrize("text", ["0.6,0.3,0.1", " 0.6, 3e-1, .1", "0.6000000001,0.3,0.1"])
def test_shares_are_read_as_decimals(text: str) -> None:
    parts = read_parts(text)
    assert sum(parts) == 1
    assert [float(share) for share in parts] == pytest.approx([0.6, 0.3, 0.1], abs=1e-9)
    assert parts.sizes(1000) == (600, 300, 100) or "6000" in text


@pytest.mark.parametrize(
    "text",
    [
        *("", "0.9", "0.9,0.1", "0.9,0.1,0", "1.1,-0.05,-0.05", "0.9,0.05,0.06", "a,b,c", "nan,nan,nan", "inf,-inf,1"),
        *("0.25,0.25,0.25,0.25", "1/2,1/4,1/4", "90,5,5", "0.9 0.05 0.05", "1e999,0.05,0.05", "1e-999,0.5,0.5"),
    ],
)
def test_other_shares_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^parts must be three positive numbers that sum to 1, such as 0\.9,"):
        read_parts(text)


@given(SHARES, st.integers(0, 5000), st.integers(1, 500))
def test_a_text_that_is_too_short_is_told_what_would_do(parts: Parts, count: int, context: int) -> None:
    path = Path("book.txt")
    try:
        require_context(context, TextLength(path, count, parts))
    except ValueError as error:
        longest, least = re.search(r"most --context-length (\d+)", str(error)), re.search(r"least (\d+)", str(error))
        assert least is not None
        require_context(context, TextLength(path, int(least[1]), parts))
        with pytest.raises(ValueError, match="characters, but"):
            require_context(context, TextLength(path, int(least[1]) - 1, parts))
        if longest is not None:
            assert 1 <= int(longest[1]) < context
            require_context(int(longest[1]), TextLength(path, count, parts))
        for shorter in range(1 if longest is None else int(longest[1]) + 1, context):
            with pytest.raises(ValueError, match="characters, but"):
                require_context(shorter, TextLength(path, count, parts))
    else:
        assert min(parts.sizes(count)) > context


def text(folder: Path, **options: object) -> Text:
    return Text(data=folder / "book.txt", **{"batch_size": 4, "context_length": 6, "seed": 0, **options})  # type: ignore[arg-type]


def parts_of(task: Text) -> list[str]:
    """The texts that windows are cut of."""
    return [task.decode(torch.from_numpy(part.copy())) for part in (task._training, task._validation, task._test)]


BOOK = "".join(chr(ord("a") + (i * i) % 23) for i in range(1000))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "book.txt").write_text(BOOK)
    (tmp_path / "other.txt").write_text(BOOK[::-1][:50])
    return tmp_path


def test_shares_of_a_text(folder: Path) -> None:
    assert parts_of(text(folder)) == [BOOK[:900], BOOK[900:950], BOOK[950:]]
    assert parts_of(text(folder, parts="0.5,0.3,0.2")) == [BOOK[:500], BOOK[500:800], BOOK[800:]]


def test_validation_on_another_text(folder: Path) -> None:
    other = folder / "other.txt"
    assert parts_of(text(folder, validation_data=other)) == [BOOK[:950], BOOK[::-1][:50], BOOK[950:]]
    task = text(folder, validation_data=other, parts="0.5,0.3,0.2")
    assert parts_of(task) == [BOOK[:800], BOOK[::-1][:50], BOOK[800:]]
    assert task.alphabet == text(folder).alphabet
    rows = [row for batch in task.validation_batches()["validation"] for row in batch.tokens]
    assert [task.decode(row) for row in rows] == [BOOK[::-1][i : i + 6] for i in range(0, 44, 6)]


def test_unusable_validation_texts_are_refused(folder: Path) -> None:
    other = folder / "other.txt"
    for content, message in (
        ("abc!" * 50, "other.txt has the character '!', which book.txt lacks: clean it up"),
        (
            "abcbab",
            "other.txt has 6 characters, but --context-length 6 needs at least 7: give at most .* 5, or",
        ),
        ("a", "other.txt has 1 characters, but --context-length 6 needs at least 7: give a longer file$"),
        ("", "other.txt is empty"),
    ):
        other.write_text(content)
        with pytest.raises(ValueError, match=message):
            text(folder, validation_data=other)
    with pytest.raises(ValueError, match=r"cannot read .*nowhere"):
        text(folder, validation_data=folder / "nowhere")


def test_the_context_length_of_the_message_works_at_once(folder: Path) -> None:
    """Whichever file it names, it is the smallest of all."""
    for options, longest in (
        ({}, 49),
        ({"parts": "0.2,0.4,0.4"}, 199),
        ({"validation_data": folder / "other.txt"}, 49),
    ):
        with pytest.raises(ValueError, match=f"give at most --context-length {longest}, or a longer file$"):
            text(folder, context_length=1000, **options)
        text(folder, context_length=longest, **options)
    for part, size in (("train", 400), ("valid", 90), ("test", 50)):
        (folder / f"ptb.{part}.txt").write_text("ab" * (size // 2))
    with pytest.raises(ValueError, match=r"test.txt has 50 .* needs at least 101: give at most .* 49, or"):
        PennTreebank(data=folder, batch_size=4, context_length=100, seed=0)
