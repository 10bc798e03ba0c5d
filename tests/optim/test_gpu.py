"""The optimizer on a GPU: updates, restored parameters and replays are those of the CPU bit for bit; a run stays near.

The same tests run on the CPU, against the reference.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zo_kernels as zo
from tests.cases import assert_same_bits, each_device, right_beside
from tests.optim.test_exactness import MODES, Interrupted
from tests.recurrent import Shape, make_batch
from zo_kernels.models import LSTM
from zo_kernels.optim.dense import Adam
from zo_kernels.transforms import clip_norm, momentum

SHAPE = Shape(vocab=11, embed=8, heads=4, head_dim=8, batch=16, time=6)


class Given:
    """A population whose losses are known: the same on every device."""

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        generator = torch.Generator().manual_seed(int(seeds[0]) % 2**32)
        return 2 + eps * torch.randn(len(seeds), 2, generator=generator, dtype=torch.float64)


def pair(dtype: torch.dtype, mode: str, device: str) -> tuple[LSTM, zo.optim.CDRGE]:
    model = LSTM(SHAPE.vocab, SHAPE.embed, SHAPE.heads * SHAPE.head_dim, SHAPE.heads, seed=0, dtype=dtype).to(device)
    return model, zo.optim.CDRGE(
        model.parameters(), lr=0.1, eps=2.0**-5, probes=24, weight_decay=0.01, mode=mode
    )  # fmt: skip


@each_device
@pytest.mark.parametrize(("mode", "dtype"), MODES)
def test_updates_and_restored_parameters(mode: str, dtype: torch.dtype, device: str) -> None:
    (here, slow), (there, ours) = pair(dtype, mode, "cpu"), pair(dtype, mode, device)
    for step in range(3):
        with zo.backend(right_beside(device)):
            slow.step(Given())
        ours.step(Given())
        for got, wanted in zip(there.parameters(), here.parameters(), strict=True):
            assert_same_bits(got.detach().cpu(), wanted.detach(), f"after {step + 1} updates")
    before, calls, seen = ours.arena.flat.clone(), 0, 0

    def closure() -> float:
        nonlocal calls, seen
        calls += 1
        seen += not torch.equal(ours.arena.flat, before)
        if calls == 48:
            raise Interrupted
        return 1.0

    with pytest.raises(Interrupted):
        ours.step(closure)
    assert calls == seen == 48
    assert_same_bits(ours.arena.flat.cpu(), before.cpu(), "restored after 48 moves")


@each_device
def test_a_run(device: str) -> None:
    """Losses of every step are within 1e-4 nats of the CPU's: a step feeds the rounding of the last one's losses back
    into the parameters."""
    tokens, targets = make_batch(SHAPE, ignored=0)
    runs: list[list[float]] = []
    for where, backend in (("cpu", right_beside(device)), (device, zo.backends.backend_for(device).name)):
        model, optimizer = pair(torch.float32, "inplace", where)
        with zo.backend(backend):
            population = model.population(tokens.to(where), targets.to(where))
            runs.append([optimizer.step(population) for _ in range(5 if device == "cpu" else 40)])
    assert max(abs(a - b) for a, b in zip(*runs, strict=True)) <= 1e-4
    assert runs[1][-1] < runs[1][0]


def replayed(device: str, distribution: str, **options: object) -> Tensor:
    """A parameter after six steps from given coefficients."""
    parameter = nn.Parameter(torch.linspace(-1, 1, 5000).to(device))
    optimizer = zo.optim.ZeroOrder(
        [parameter], lr=0.01, eps=2.0**-7, probes=16, weight_decay=0.1, distribution=distribution, **options
    )
    for step in range(6):
        optimizer.replay(torch.randn(16, generator=torch.Generator().manual_seed(step)))
    return parameter.detach().cpu()


@each_device
@pytest.mark.parametrize("distribution", ["rademacher", "normal", "uniform", "sparse-4"])
def test_replays(distribution: str, device: str) -> None:
    with zo.backend(right_beside(device)):
        expected = replayed("cpu", distribution, transforms=[clip_norm(1.0), momentum(0.9, 3)])
    actual = replayed(device, distribution, transforms=[clip_norm(1.0), momentum(0.9, 3)])
    assert_same_bits(actual, expected)


@each_device
def test_adam_differs_by_rounding_only(device: str) -> None:
    with zo.backend(right_beside(device)):
        expected = replayed("cpu", "rademacher", dense=Adam())
    assert (replayed(device, "rademacher", dense=Adam()) - expected).abs().max() <= 1e-5
