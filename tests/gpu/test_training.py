"""The optimizer on a GPU: updates, restored parameters, replays and processes are bit for bit those of the CPU.

The same is done on the CPU, against the reference and with gloo for NCCL.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zo_kernels as zo
from tests.cases import assert_same_bits, each_device, right_beside
from tests.distributed.group_of_one import train_in_a_group_of_one
from tests.flat import flat
from tests.optim.test_exactness import MODES, Interrupted
from tests.recurrent import Shape, make_batch
from tests.server import server
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
    options = {"eps": 2.0**-5, "probes": 24, "weight_decay": 0.01, "mode": mode}
    return model, zo.optim.CDRGE(model.parameters(), lr=0.1, **options)


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
    before, moved = flat(ours.space), []

    def closure() -> float:
        moved.append(not torch.equal(flat(ours.space), before))
        if len(moved) == 48:
            raise Interrupted
        return 1.0

    with pytest.raises(Interrupted):
        ours.step(closure)
    assert moved == [True] * 48
    assert_same_bits(flat(ours.space).cpu(), before.cpu(), "restored after 48 moves")


@each_device
def test_a_run(device: str) -> None:
    """Every loss is within 1e-4 nats of the CPU's: a step feeds the rounding of the last one's losses back."""
    batch, runs = make_batch(SHAPE, ignored=0), []
    for where, backend in (("cpu", right_beside(device)), (device, zo.backends.backend_for(device).name)):
        model, optimizer = pair(torch.float32, "inplace", where)
        with zo.backend(backend):
            population = model.population(*(x.to(where) for x in batch))
            runs.append([optimizer.step(population) for _ in range(5 if device == "cpu" else 40)])
    assert max(abs(a - b) for a, b in zip(*runs, strict=True)) <= 1e-4
    assert runs[1][-1] < runs[1][0]


def replayed(device: str, options: dict[str, object]) -> Tensor:
    """A parameter after six steps from given coefficients."""
    parameter = nn.Parameter(torch.linspace(-1, 1, 5000).to(device))
    optimizer = zo.optim.ZeroOrder([parameter], lr=0.01, eps=2.0**-7, probes=16, weight_decay=0.1, **options)
    for step in range(6):
        optimizer.replay(torch.randn(16, generator=torch.Generator().manual_seed(step)))
    return parameter.detach().cpu()


@each_device
@pytest.mark.parametrize("distribution", ["rademacher", "normal", "uniform", "sparse-4"])
def test_replays(distribution: str, device: str) -> None:
    options = {"distribution": distribution, "transforms": [clip_norm(1.0), momentum(0.9, 3)]}
    with zo.backend(right_beside(device)):
        expected = replayed("cpu", options)
    assert_same_bits(replayed(device, options), expected)


@each_device
def test_adam_differs_by_rounding_only(device: str) -> None:
    with zo.backend(right_beside(device)):
        expected = replayed("cpu", {"dense": Adam()})
    assert (replayed(device, {"dense": Adam()}) - expected).abs().max() <= 1e-5


@each_device
@pytest.mark.parametrize("by", ["replicas", "fsdp"])
def test_a_group_of_one(by: str, device: str, tmp_path: Path) -> None:
    """In a process of its own, for after fully_shard every optimizer of a process has to look for FSDP's modules."""
    process = server.Process(target=train_in_a_group_of_one, args=(by, device, str(tmp_path / "store")))
    process.start()
    process.join()
    assert process.exitcode == 0
