"""`python -m bench.dnc`: a step of the models with a memory on their kernel, against members in torch; 4 minutes.

The rival evaluates a chunk of perturbed copies at a time by batched products, as the models did before they had a
kernel, and still do for float64 parameters. Its step takes fewer probes and is scaled: it is linear in them. Both in
turns, in one process. On one thread the figure is of processor time, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any, NamedTuple
from unittest import mock

import torch

import zo_kernels as zo
from bench.report import RESULTS, machine, shown, table, write
from zo_kernels.models import PRESETS, LanguageModel, build_model

EPS = 2.0**-7


class Setting(NamedTuple):
    """A preset, with a vocabulary and an embedding of 100, and a batch; probes of ours and of the rival's step."""

    preset: str
    batch_size: int
    time: int
    probes: int
    few: int
    times_faster: float | None

    def model(self) -> LanguageModel:
        p = PRESETS[self.preset]
        return build_model(
            p.model,
            100,
            embed_dim=p.embed_dim,
            hidden_size=p.hidden_size,
            num_heads=p.num_heads,
            memory_slots=p.memory_slots,
            memory_width=p.memory_width,
            seed=0,
        )


SETTINGS = (
    Setting("paper-dnc-300k", 1, 100, 512, 16, 8.0),
    Setting("dnc-300k", 1, 100, 512, 16, 8.0),
    Setting("paper-dnc-1m", 1, 100, 64, 8, None),
    Setting("paper-dnc-300k", 64, 10, 32, 4, None),
)


def measure(setting: Setting, threads: int, rounds: int) -> dict[str, Any]:
    """The median of the ratios of the rounds."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    shape = (setting.batch_size, setting.time)
    tokens, targets = (torch.randint(100, shape, generator=generator) for _ in range(2))
    model, rival = setting.model(), setting.model()
    opt, rival_opt = (
        zo.optim.CDRGE(m.parameters(), lr=1e-3, eps=EPS, probes=probes)
        for m, probes in ((model, setting.probes), (rival, setting.few))
    )
    clock = time.process_time if threads == 1 else time.perf_counter
    with mock.patch.object(rival, "_has_kernel", return_value=False):
        ways = (
            lambda: opt.step(model.population(tokens, targets)),
            lambda: rival_opt.step(rival.population(tokens, targets)),
        )
        taken: list[list[float]] = [[], []]
        for _ in range(rounds + 1):
            for way, times in zip(ways, taken, strict=True):
                started = clock()
                way()
                times.append(1e3 * (clock() - started))
    mine, theirs = (times[1:] for times in taken)  # the first round warms up
    theirs = [ms * setting.probes / setting.few for ms in theirs]
    batch = f"{setting.batch_size} x {setting.time} tokens, {setting.probes} probes"
    return {
        "name": f"{setting.preset}, {batch}, {threads} thread{'s' * (threads > 1)}, times faster",
        "figure": median(other / ms for ms, other in zip(mine, theirs, strict=True)),
        "unit": "x",
        "at_least": setting.times_faster,
        "ours_ms": median(mine),
        "rival_ms": median(theirs),
        "spread": [f(other / ms for ms, other in zip(mine, theirs, strict=True)) for f in (min, max)],
    }


def main() -> None:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    figures = [measure(setting, threads, arguments.rounds) for setting in SETTINGS for threads in (1, 2)]
    print(table(figures))
    path = RESULTS / "dnc.json"
    write(path, {"command": "python -m bench.dnc", "machine": machine(), "figures": figures})
    print(f"written to {shown(path)}")


if __name__ == "__main__":
    main()
