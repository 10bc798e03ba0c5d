"""Each way to address a DNC's memory against the paper's equations, written out as loops."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.models import dnc_equations as equations
from zo_kernels.models import addressing

M, B, N, W, R = 2, 3, 5, 4, 2
EXACT = {"rtol": 0.0, "atol": 1e-12}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(M, B, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weighting(*shape: int, seed: int = 0) -> Tensor:
    """Sums to less than 1 over the slots."""
    return 0.9 * torch.softmax(2 * draw(*shape, seed=seed), dim=-1)


def one_by_one(function: Callable[..., object], *arguments: Tensor) -> Tensor:
    """`function` of each member's and sequence's own lists."""
    return torch.tensor(
        [
            [function(*(argument[m, b].tolist() for argument in arguments)) for b in range(B)]
            for m in range(M)
        ],
        dtype=torch.float64,
    )  # fmt: skip


def test_content() -> None:
    memory, keys, strengths = draw(N, W), draw(R, W, seed=1), 1 + 3 * draw(R, seed=2).abs()
    memory[0, 0, 2] = 0  # a slot that was never written

    def each_head(memory: equations.Matrix, keys: equations.Matrix, strengths: equations.Vector) -> equations.Matrix:
        return [equations.content(memory, key, strength) for key, strength in zip(keys, strengths, strict=True)]

    actual = addressing.content_weights(keys, strengths, memory, addressing.norms(memory))
    torch.testing.assert_close(actual, one_by_one(each_head, memory, keys, strengths), **EXACT)


def test_a_strong_key_finds_its_slot() -> None:
    memory = draw(N, W)
    weights = addressing.content_weights(
        memory[:, :, 2:3], draw(1).abs() * 0 + 1000.0, memory, addressing.norms(memory)
    )
    torch.testing.assert_close(weights[:, :, 0, 2], torch.ones(M, B, dtype=torch.float64), rtol=0, atol=1e-3)


def test_oneplus() -> None:
    x = draw(N) * 3
    assert torch.all(addressing.oneplus(x) > 1)
    expected = one_by_one(lambda xs: [equations.oneplus(value) for value in xs], x)
    torch.testing.assert_close(addressing.oneplus(x), expected, **EXACT)


def test_usage() -> None:
    arguments = draw(N).sigmoid(), weighting(N, seed=1), weighting(R, N, seed=2), draw(R, seed=3).sigmoid()
    torch.testing.assert_close(addressing.next_usage(*arguments), one_by_one(equations.usage, *arguments), **EXACT)


@pytest.mark.parametrize("usage", [draw(N).sigmoid(), draw(N).sigmoid().round(), draw(N) * 0, draw(N) * 0 + 1])
def test_allocation(usage: Tensor) -> None:
    torch.testing.assert_close(addressing.allocation_weights(usage), one_by_one(equations.allocation, usage), **EXACT)


def test_the_least_used_slot_is_allocated() -> None:
    used = torch.tensor([[[0.9, 0.0, 1.0, 0.0]]], dtype=torch.float64)
    assert addressing.allocation_weights(used).tolist() == [[[0, 1, 0, 0]]]  # of equals the first
    assert addressing.allocation_weights(torch.ones_like(used)).tolist() == [[[0, 0, 0, 0]]]  # none is free


def test_write_weights() -> None:
    content, allocation, gates = weighting(N), weighting(N, seed=1), draw(2, seed=2).sigmoid()
    write_gate, allocation_gate = gates.split(1, dim=-1)
    expected = one_by_one(
        lambda c, a, g: equations.write_weights(c, a, write_gate=g[0], allocation_gate=g[1]), content, allocation, gates
    )
    actual = addressing.write_weights(content, allocation, write_gate, allocation_gate)
    torch.testing.assert_close(actual, expected, **EXACT)


def test_memory() -> None:
    arguments = draw(N, W), weighting(N, seed=1), draw(W, seed=2).sigmoid(), draw(W, seed=3)
    torch.testing.assert_close(addressing.next_memory(*arguments), one_by_one(equations.memory, *arguments), **EXACT)


def test_link_and_precedence() -> None:
    link, precedence, written = draw(N, N).sigmoid(), weighting(N, seed=1), weighting(N, seed=2)
    actual = addressing.next_link(link, precedence, written)
    torch.testing.assert_close(actual, one_by_one(equations.link, link, precedence, written), **EXACT)
    expected = one_by_one(equations.precedence, precedence, written)
    torch.testing.assert_close(addressing.next_precedence(precedence, written), expected, **EXACT)


def test_read_weights() -> None:
    link, before, content = draw(N, N).sigmoid(), weighting(R, N, seed=1), weighting(R, N, seed=2)
    modes = draw(R, 3, seed=3).softmax(dim=-1)

    def each_head(links: equations.Matrix, *heads: equations.Matrix) -> equations.Matrix:
        return [equations.read_weights(links, *head) for head in zip(*heads, strict=True)]

    expected = one_by_one(each_head, link, before, content, modes)
    torch.testing.assert_close(addressing.read_weights(link, before, content, modes), expected, **EXACT)


def test_what_was_written_is_read_back_in_order() -> None:
    """Three writes to slots 2, 0 and 3; then forward from 2 leads to 0 and 3, backward from 3 to 0 and 2."""
    link, precedence = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4)
    slots = torch.eye(4)[None, None]
    for slot in (2, 0, 3):
        link = addressing.next_link(link, precedence, slots[:, :, slot])
        precedence = addressing.next_precedence(precedence, slots[:, :, slot])
    for mode, visited in ((2, (2, 0, 3)), (0, (3, 0, 2))):
        modes = torch.eye(3)[None, None, mode : mode + 1]
        weights = slots[:, :, visited[0] : visited[0] + 1]
        for slot in visited[1:]:
            weights = addressing.read_weights(link, weights, torch.zeros_like(weights), modes)
            assert weights.argmax() == slot
            assert weights.sum() == 1


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (addressing.next_usage, (draw(N).sigmoid(), weighting(N), weighting(R, N), draw(R).sigmoid())),
        (addressing.allocation_weights, (draw(N).sigmoid(),)),
        (addressing.next_memory, (draw(N, W), weighting(N), draw(W).sigmoid(), draw(W))),
        (addressing.next_link, (draw(N, N).sigmoid(), weighting(N), weighting(N, seed=1))),
        (addressing.next_precedence, (weighting(N), weighting(N, seed=1))),
        (addressing.read_weights, (draw(N, N).sigmoid(), weighting(R, N), weighting(R, N, seed=1), draw(R, 3))),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_gradients_and_arguments_left_alone(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> None:
    inputs = tuple(argument.clone().requires_grad_() for argument in arguments)
    assert torch.autograd.gradcheck(function, inputs)
    assert all(torch.equal(x, y) for x, y in zip(inputs, arguments, strict=True))
