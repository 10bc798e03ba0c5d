"""The tiled output projection and cross-entropy, against torch's on all logits at once."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zo_kernels.backends.recurrent import loss
from zo_kernels.backends.recurrent.loss import logits, nats
from zo_kernels.models import IGNORE_INDEX

M, T, B, H, V = 6, 5, 3, 8, 11


def tensors(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(size, generator=generator) for size in ((T, B, M, H), (M, V, H), (M, V)))
    targets = torch.randint(V, (T, B), generator=generator)
    targets[torch.rand(T, B, generator=generator) < 0.3] = IGNORE_INDEX
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets


def at_once(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    scores = torch.einsum("tbmh,mvh->mtbv", hidden.double(), weight.double()) + bias.double()[:, None, None]
    return torch.stack([F.cross_entropy(x.flatten(0, 1), targets.flatten(), reduction="sum") for x in scores])


@pytest.mark.parametrize("tile_bytes", [1, 4 * V * 2, 4 * V * 4 * 3, 4 * V * 15 * 4, 64 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_tiles_of_any_size_sum_to_the_whole(
    tile_bytes: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "TILE_BYTES", tile_bytes)
    sizes = []
    monkeypatch.setattr(loss, "logits", lambda *args: sizes.append(logits(*args)) or sizes[-1])
    hidden, weight, bias, targets = tensors(dtype)
    actual = nats(hidden, weight, bias, targets)
    assert (actual.shape, actual.dtype) == ((M,), torch.float64)
    expected = at_once(hidden, weight, bias, targets)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-11 if dtype == torch.float64 else 2e-5)
    for scores in sizes:
        assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert scores.numel() * scores.element_size() <= max(tile_bytes, V * scores.element_size())
    assert sum(scores.shape[0] * scores.shape[1] for scores in sizes) == M * T * B


def test_hidden_states_of_flashrnn_are_read_where_they_are() -> None:
    """Every other dimension of a larger tensor, as `vanilla` leaves them."""
    hidden, weight, bias, targets = tensors()
    among_states = torch.randn(T, B, 2, M, H)
    among_states[:, :, 0] = hidden
    assert torch.equal(nats(among_states[:, :, 0], weight, bias, targets), nats(hidden, weight, bias, targets))


def test_nothing_scored_is_nothing() -> None:
    hidden, weight, bias, targets = tensors()
    assert torch.equal(nats(hidden, weight, bias, targets.fill_(IGNORE_INDEX)), torch.zeros(M, dtype=torch.float64))


def test_a_target_out_of_range_raises() -> None:
    hidden, weight, bias, targets = tensors()
    targets[1, 1] = V
    with pytest.raises(IndexError):
        nats(hidden, weight, bias, targets)
