"""What a durable run costs: the journal's rows, and steps taken again from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

import zo_kernels as zo
from bench.compare import compare
from zo_kernels.interrupts import InterruptGate
from zo_kernels.run.journal import Journal, Row
from zo_kernels.train.build import build
from zo_kernels.train.cli import parse

PROBES = 96


def test_journal_over_a_step(benchmark: BenchmarkFixture, threads: int, tmp_path: Path) -> None:
    """The rows from one checkpoint to the next and their sync, over the steps of the default run, which is a small one.

    A tenth of the steps is timed.
    """
    config = parse([])
    run = build(config, InterruptGate())
    batch = run.task.batch(0)
    coeffs = run.solver.step(batch, 1e-6).coeffs.numpy()
    steps = config.checkpoint_every
    with Journal.create(tmp_path / "journal.sqlite") as journal:

        def append() -> None:
            for _ in range(steps):
                journal.append(Row(journal.next_step, 0.3, 0.03, 0, coeffs, 1.5, 0.1))
            journal.sync()

        def step() -> None:
            for _ in range(steps // 10):
                run.solver.step(batch, 1e-6)

        compare(benchmark, append, step, rounds=15, at_most=0.01, rival_scale=10)


@pytest.mark.parametrize("size", [10_000_000], ids=["10M"])
def test_replay_over_accumulate(benchmark: BenchmarkFixture, threads: int, size: int, tmp_path: Path) -> None:
    """A step from its row in the journal, over the accumulate kernel alone on the same seeds."""
    parameter = nn.Parameter(torch.zeros(size))
    opt = zo.optim.CDRGE([parameter], lr=1e-3, eps=2**-7, probes=PROBES)
    theta, random = torch.zeros(size), np.random.default_rng(0)
    rounds = 21
    with Journal.create(tmp_path / "journal.sqlite") as journal:
        for step in range(rounds + 2):
            journal.append(Row(step, 1e-3, 2**-7, 0, random.standard_normal(PROBES).astype(np.float32), 1.0, 0.0))
        rows = journal.rows()
        opt.replay(torch.from_numpy(next(rows).coeffs.copy()))
        coeffs = torch.from_numpy(random.standard_normal(PROBES)) * 1e-3
        seeds = torch.from_numpy(zo.philox.probe_seeds(0, 0, PROBES))
        compare(
            benchmark,
            lambda: opt.replay(torch.from_numpy(next(rows).coeffs.copy())),
            lambda: zo.ops.accumulate_probes_(theta, coeffs, seeds),
            rounds=rounds,
            at_most=1.3,
        )
