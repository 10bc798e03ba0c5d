"""Loops as users write them, for the tests of `zo_kernels.durable`, and processes that run them and die."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zo_kernels as zo
from tests.server import server
from tests.train.crashes import MOMENTS, _die_at
from tests.train.runs import without_times
from zo_kernels.durable import DurableRun
from zo_kernels.optim import ZeroOrder
from zo_kernels.run.folder import checkpoint_path
from zo_kernels.run.journal import Journal

STEPS = 23

Built = tuple[nn.Module, ZeroOrder]


def build_groups() -> Built:
    """Two groups that differ in everything, with momentum."""
    model = _net()
    groups = [
        {"params": model[0].parameters(), "weight_decay": 0.01},
        {"params": model[2].parameters(), "lr": 0.004, "eps": 1e-3},
    ]
    return model, ZeroOrder(groups, lr=0.01, eps=2**-7, probes=3, transforms="momentum:0.9:4")


def build_shadow() -> Built:
    """bfloat16 parameters, perturbed in a shadow copy, with Adam."""
    model = _net().bfloat16()
    return model, ZeroOrder(model.parameters(), lr=0.02, eps=2**-5, probes=3, mode="shadow", dense="adam")


def build_adapter() -> Built:
    """A frozen layer with an adapter, whose lr is its eps too; tied weights and statistics besides."""
    model = _net()
    model[0].requires_grad_(False)
    model.adapter = nn.Sequential(nn.Linear(4, 2, bias=False), nn.BatchNorm1d(2), nn.Linear(2, 8, bias=False))
    model.tied = model[2]
    return model, ZeroOrder(model, lr=2**-6, probes=3, estimator="1.5-spsa", weight_decay=0.1)


def build_populated() -> Built:
    """A language model, whose losses are those of a population."""
    model = zo.models.LSTM(vocab_size=7, embed_dim=4, hidden_size=8, num_heads=2)
    return model, ZeroOrder(model.parameters(), lr=2**-6, eps=2**-7, probes=3, distribution="rademacher")


def build_micro() -> Built:
    """Micro-batches whose estimates must agree, and other probes."""
    model = _net()
    return model, ZeroOrder(
        model.parameters(), lr=0.01, eps=2**-7, probes=3, max_cosine_distance=1.2, distribution="normal", maximize=True
    )


BUILDS: dict[str, Callable[[], Built]] = {
    name.removeprefix("build_"): value for name, value in list(globals().items()) if name.startswith("build_")
}


def train(
    folder: Path,
    name: str,
    *,
    steps: int = STEPS,
    seen: Callable[[DurableRun, nn.Module], object] | None = None,
    within: Callable[[int], object] = lambda step: None,
    **options: Any,
) -> nn.Module:
    """Trains one of BUILDS. seen: called after each step. within: called in the first loss of a step."""
    torch.manual_seed(5)  # of the batches; the weights have seeds of their own
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, opt = BUILDS[name]()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 40)
    noise = torch.Generator().manual_seed(1)
    parts = {"scheduler": scheduler, "noise": noise}
    keywords = {"build": f"tests.durable.loops:build_{name}", "checkpoint_every": 5, "keep_checkpoints": 2}
    with zo.durable.run(folder, model, opt, **{**keywords, **parts, **options}) as run:
        for step in run.steps(steps):
            if step % 6 == 0:
                run.scores({"validation": (step / 7, 0.5), "longer": (0.1, float("nan"))})
            loss = opt.step(loss_of(name, model, noise, lambda step=step: within(step)))
            run.state["sum"] = run.state.get("sum", 0.0) + loss
            scheduler.step()
            if seen is not None:
                seen(run, model)
        run.scores({"sum": (run.state["sum"], 0.0)})
    return model


def loss_of(name: str, model: Any, noise: torch.Generator, within: Callable[[], object]) -> Any:
    """The loss of the next batch, which global and own generators draw."""
    if name == "populated":
        tokens, targets = torch.randint(7, (2, 3, 5))
        within()
        return model.population(tokens, targets)
    x = torch.randn(6, 4) + 0.1 * torch.randn(6, 4, generator=noise)
    y = x[:, :1].sin()

    def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
        within()
        hidden = model[0](x.to(model[0].weight.dtype))
        if name == "adapter":
            torch.rand(1)  # a draw that a step which is taken again does not make
            hidden = hidden + model.adapter(x)
        return (model[2](model[1](hidden)).float() - y).square().mean()

    if name == "micro":
        return [lambda: -loss(x[:3], y[:3]), lambda: -loss(x[3:], y[3:])]
    return loss


def finish(folder: Path, name: str, moment: str | None = None, number: int = 0, **options: Any) -> int:
    """Trains in a process, which dies as the `number`-th time (from 0) it reaches one of MOMENTS. The exit code."""
    process = start(folder, name, moment, number, **options)
    process.join(120)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


def start(folder: Path, name: str, moment: str | None = None, number: int = 0, **options: Any) -> Any:
    """Starts such a process."""
    process = server.Process(target=_train, args=(folder, name, moment, number, options))
    process.start()
    return process


def _train(folder: Path, name: str, moment: str | None, number: int, options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if moment is not None:
        owner, function, when = MOMENTS[moment]
        _die_at(owner, function, when, number)
    train(folder, name, **options)
    os._exit(0)


def bits_of(run: Path) -> tuple[Any, ...]:
    """All that two runs have in common if they are the same run: weights, rows, last checkpoint and metrics."""
    with Journal.open(run / "journal.sqlite", writable=False) as journal:
        rows = [(*row[:4], row.coeffs.tobytes(), row.loss, row.groups) for row in journal.rows()]
        last = checkpoint_path(run, journal.next_step)
    return (run / "weights.safetensors").read_bytes(), rows, _tensors(last), without_times(run)


def _tensors(path: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    return {name: x.reshape(-1).view(torch.uint8).numpy().tobytes() for name, x in load_file(path).items()}


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
