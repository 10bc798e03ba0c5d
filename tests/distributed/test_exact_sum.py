"""Exact sums: any order, any division, and no rounding but that of the terms."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zo_kernels.distributed.exact_sum import MOST, ExactSum

ELEMENTS = st.floats(-MOST, MOST, width=32) | st.floats(-1.0, 1.0, width=32)


def words_of(terms: list[list[Tensor]]) -> Tensor:
    total = ExactSum([torch.zeros(2), torch.zeros(1, 1)], len(terms))
    for term in terms:
        total.add(term)
    return total.words


@given(rows=st.lists(st.lists(ELEMENTS, min_size=3, max_size=3), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_the_order_and_the_division_do_not_matter(rows: list[list[float]], seed: int) -> None:
    terms = [[torch.tensor(row[:2]), torch.tensor([row[2:]])] for row in rows]
    order = torch.randperm(len(terms), generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [terms[i] for i in order]
    cut = seed % (len(terms) + 1)
    words = words_of(terms)
    assert torch.equal(words, words_of(shuffled))
    assert torch.equal(words, words_of(shuffled[:cut]) + words_of(shuffled[cut:]))


@given(rows=st.lists(st.lists(ELEMENTS, min_size=3, max_size=3), min_size=1, max_size=8))
def test_a_sum_is_that_of_the_rounded_terms(rows: list[list[float]]) -> None:
    total = ExactSum([torch.zeros(2), torch.zeros(1, 1)], len(rows))
    for row in rows:
        total.add([torch.tensor(row[:2]), torch.tensor([row[2:]])])
    first, second = total.total()
    assert (first.shape, second.shape) == ((2,), (1, 1))
    for found, column in zip([*first.tolist(), second.item()], zip(*rows, strict=True), strict=True):
        exact = sum(Fraction(x) for x in column)
        assert abs(Fraction(found) - exact) <= Fraction(len(rows), 2**47) + abs(exact) / 2**51


def test_the_largest_sum_does_not_overflow() -> None:
    total = ExactSum([torch.zeros(1)], 2**16)
    term = [torch.tensor([MOST], dtype=torch.float64)]
    total.add(term)
    total.words *= 2**16
    assert total.total()[0].item() == math.ldexp(MOST, 16)
    assert int(total.words.abs().max()) < 2**62
    half = ExactSum([torch.zeros(1)], 2**16)
    half.add([torch.tensor([0.5], dtype=torch.float64)])
    assert 2**16 * int(half.words.abs().max()) <= 2**62


def test_more_terms_are_refused() -> None:
    ExactSum([torch.zeros(1)], 2**16)
    with pytest.raises(ValueError, match="an exact sum has at most 65536 terms, not 65537: use larger micro-batches"):
        ExactSum([torch.zeros(1)], 2**16 + 1)
