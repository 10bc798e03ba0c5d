"""A durable loop on two processes: only rank 0 writes, and both go on with its state."""

import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.distributed.replicas import run_on_ranks
from tests.durable.loops import bits_of, finish, train
from zo_kernels.distributed.replicas import Replicas
from zo_kernels.durable import DurableRun
from zo_kernels.errors import UsageError


def digest_of(rank: int, folder: Path, name: str, stop: int | None = None) -> list[object]:
    """Trains until a step whose loss fails, if there is one. The sum of its losses, and the bits of its weights."""
    sums = []

    def seen(run: DurableRun, model: torch.nn.Module) -> None:
        sums.append(run.state["sum"])

    def within(step: int) -> None:
        if step == stop:
            raise ValueError("enough")

    model = train(folder, name, seen=seen, within=within)
    return [sums[-1], [p.detach().double().sum().item() for p in model.parameters()]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["groups", "shadow", "micro", "populated"])
def test_two_ranks_are_the_run_of_one(name: str, tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert finish(alone, name) == 0
    stopped = run_on_ranks(2, digest_of, shared, name, 13)
    assert all("enough" in str(reply) or "failed to evaluate its share" in str(reply) for reply in stopped), stopped
    assert finish(shared, name, "row written", 1) == -signal.SIGKILL  # alone, from where two stopped
    first, second = run_on_ranks(2, digest_of, shared, name)
    assert first == second
    assert bits_of(shared) == bits_of(alone)


def refuse(rank: int, folder: Path) -> str:
    try:
        train(folder, "groups" if rank == 0 else "micro")
    except (UsageError, RuntimeError) as error:
        return str(error)
    return "trained"


@pytest.mark.slow
def test_ranks_with_other_optimizers_are_refused(tmp_path: Path) -> None:
    for reply in run_on_ranks(2, refuse, tmp_path / "run"):
        assert "max_cosine_distance" in reply
    assert not (tmp_path / "run").exists()


def take_some(rank: int, folder: Path) -> str:
    group = dist.new_group([0])
    if rank == 1:
        return ""
    from tests.durable.test_refusals import build
    from zo_kernels import durable

    model, opt = build(replicas=Replicas(group))
    opt.replicas.world_size = 3  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="only some of the processes"):
        durable.run(folder, model, opt)
    return ""


@pytest.mark.slow
def test_some_of_the_processes_are_refused(tmp_path: Path) -> None:
    assert run_on_ranks(2, take_some, tmp_path / "run") == ["", ""]
