"""`python -m bench.distributed`: what several processes cost and gain, on loopback with gloo; about 80 seconds.

Bytes that the sockets of a rank sent in a step, as the kernel counted them; steps of 1, 2, 3 and 4 processes with one
thread each, in turns; the exchange of losses when all ranks come to it together, beside the collectives it could be
made of. Figures are medians; the least of each stands beside it, for other work on the machine adds time and takes
none, and the cores that other processes kept busy meanwhile are told. Writes bench/results/distributed.json, from
which `python -m bench.scaling` takes its constants.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import zo_kernels as zo
from bench.ranks import Ranks
from bench.report import RESULTS, machine
from bench.wire import sent

SIZES = (1, 2, 3, 4)
ROUNDS, STEPS = 10, 2
REPEATS, PERIOD = 60, 0.012
PROBES, FEW, MANY = 96, 24, 512
MODELS: dict[str, tuple[tuple[int, int, int, int], tuple[int, int]]] = {
    "tiny": ((100, 100, 240, 12), (224, 10)),
    "20k": ((65, 32, 68, 4), (64, 10)),
}
"""An LSTM's vocabulary, embedding, units and heads, and its batch's sequences and tokens."""


def main() -> None:
    with contextlib.ExitStack() as stack:
        groups = {size: stack.enter_context(Ranks(size)) for size in SIZES}
        several = [groups[size] for size in SIZES if size > 1]
        wire = [bytes_of(group) for group in several]
        exchanges = exchange(several)
        link = {"hop_bytes": 2**20, **loopback(groups[2])}
        steps = step_seconds(groups)
    figures = bars(wire, exchanges, steps)
    content = {
        "machine": machine(),
        "command": "python -m bench.distributed",
        "figures": figures,
        "bytes": wire,
        "exchange": exchanges,
        "loopback": link,
        "steps": steps,
    }
    (RESULTS / "distributed.json").write_text(json.dumps(content, indent=1) + "\n")
    print(table(content))


def bars(
    wire: list[dict[str, Any]], exchanges: list[dict[str, Any]], steps: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The figures that have a bar.

    ratio_of_least: of the least seconds of each size. ratio_of_work: of the seconds on a core of the rank that worked
    most, which a busy machine stretches little; waiting is not in it.
    """
    one, two = (
        next(s for s in steps if (s["model"], s["processes"], s["probes"]) == ("tiny", size, PROBES)) for size in (1, 2)
    )
    waits = {
        n: next(e for e in exchanges if (e["processes"], e["probes"], e["way"]) == (4, n, "Replicas.exchange"))
        for n in (PROBES, MANY)
    }
    return [
        {
            "name": f"bytes a rank and step, n={MANY}, most of W=2, 3, 4",
            "figure": max(w["payload"] + w["headers"] for w in wire),
            "at_most": 16_000,
        },
        {
            "name": f"W=2 over W=1, one thread each, n={PROBES}",
            "figure": statistics.median(a / b for a, b in zip(one["seconds"], two["seconds"], strict=True)),
            "ratio_of_work": one["core_seconds"] / two["core_seconds"],
            "ratio_of_least": min(one["seconds"]) / min(two["seconds"]),
            "at_least": 1.85,
        },
        *(
            {"name": f"exchange, W=4, n={n}, ms", "figure": w["median_ms"], "least": w["least_ms"], "at_most": 3.0}
            for n, w in waits.items()
        ),
    ]


def bytes_of(group: Ranks, steps: int = 50) -> dict[str, Any]:
    """Of whole steps of an optimizer, the comparison of parameters among them; the rank that sent most."""
    counts = group.call(_count_steps, steps)
    payload, headers = max(counts, key=sum)
    return {"processes": group.world_size, "probes": MANY, "payload": payload, "headers": headers}


def _count_steps(state: dict[str, Any], steps: int) -> tuple[float, float]:
    parameter = torch.nn.Parameter(torch.zeros(300))
    opt = zo.optim.CDRGE([parameter], lr=2**-6, probes=MANY)
    loss = parameter.detach().sum()
    opt.step(lambda: loss)
    dist.barrier()
    before = sent()
    for _ in range(steps):
        opt.step(lambda: loss)
    after = sent()
    return (after[0] - before[0]) / steps, (after[1] - before[1]) / steps


def exchange(groups: list[Ranks]) -> list[dict[str, Any]]:
    """Milliseconds from the last rank's arrival to the last one's leave, by way, in turns."""
    waits: dict[tuple[int, int, str], list[float]] = {}
    for _ in range(3):
        for group in groups:
            for probes in (PROBES, MANY):
                for way in ("Replicas.exchange", "all_gather", "all_to_all_single"):
                    times = group.call(_meet, way, probes, time.monotonic() + 0.05)
                    found = waits.setdefault((group.world_size, probes, way), [])
                    for at in zip(*times, strict=True):
                        found.append(1e3 * (max(end for _, end in at) - max(begin for begin, _ in at)))
    return [{"processes": w, "probes": n, "way": way, **spread(found)} for (w, n, way), found in waits.items()]


def spread(milliseconds: list[float]) -> dict[str, float]:
    ordered = sorted(milliseconds)
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    return {"median_ms": statistics.median(ordered), "least_ms": ordered[0], "p95_ms": p95}


def _meet(state: dict[str, Any], way: str, probes: int, start: float) -> list[tuple[float, float]]:
    """When this rank came and left, by the clock that all processes of a machine share."""
    world_size = state["world_size"]
    share = torch.zeros(3 + 2 * -(-probes // world_size), dtype=torch.float64)
    times = []
    replicas = zo.distributed.Replicas()
    ready = torch.zeros(probes, 2, dtype=torch.float64)
    received = torch.empty(world_size * len(share), dtype=torch.float64)

    def meet() -> Tensor | None:
        if way == "Replicas.exchange":
            return replicas.exchange(lambda mine: ready[mine], probes, (2,))
        if way == "all_gather":
            return dist.all_gather(list(received.chunk(world_size)), share)
        return dist.all_to_all_single(received, share.repeat(world_size))

    meet()
    for i in range(REPEATS):
        time.sleep(max(0.0, start + i * PERIOD - time.monotonic()))
        begin = time.monotonic()
        meet()
        times.append((begin, time.monotonic()))
    return times


def loopback(group: Ranks) -> dict[str, float]:
    """Least seconds of sending 8 bytes, and 1 MiB, to the other process and hearing 8 back."""
    small, large = (min(group.call(_ping, size)[0]) for size in (8, 2**20))
    return {"small_seconds": small, "large_seconds": large}


def _ping(state: dict[str, Any], size: int) -> list[float]:
    message, answer = torch.zeros(size, dtype=torch.uint8), torch.zeros(8, dtype=torch.uint8)
    times = []
    for _ in range(200):
        begin = time.perf_counter()
        if state["rank"] == 0:
            dist.send(message, 1)
            dist.recv(answer, 1)
        else:
            dist.recv(message, 0)
            dist.send(answer, 0)
        times.append(time.perf_counter() - begin)
    return times


def step_seconds(groups: dict[int, Ranks]) -> list[dict[str, Any]]:
    """Seconds of a step in each round: of the slowest rank, the mean of the steps of a turn."""
    settings = [(size, "tiny", PROBES) for size in groups]
    settings += [(1, "tiny", FEW), (1, "20k", PROBES), (1, "20k", FEW)]
    parameters = {(w, name, n): groups[w].call(_build, name, n)[0] for w, name, n in settings}
    seconds: dict[tuple[int, str, int], list[float]] = {setting: [] for setting in settings}
    others: dict[tuple[int, str, int], list[float]] = {setting: [] for setting in settings}
    worked: dict[tuple[int, str, int], list[float]] = {setting: [] for setting in settings}
    for _ in range(ROUNDS):
        for setting in settings:
            begin, busy = time.perf_counter(), busy_seconds()
            took, own = zip(*groups[setting[0]].call(_steps, *setting[1:]), strict=True)
            seconds[setting].append(max(took))
            worked[setting].append(max(own) / STEPS)
            others[setting].append((busy_seconds() - busy - sum(own)) / (time.perf_counter() - begin))
    return [
        {
            "model": name,
            "parameters": parameters[w, name, n],
            "processes": w,
            "probes": n,
            "median": statistics.median(found),
            "least": min(found),
            "core_seconds": statistics.median(worked[w, name, n]),
            "cores_of_others": statistics.median(others[w, name, n]),
            "seconds": found,
        }
        for (w, name, n), found in seconds.items()
    ]


def _build(state: dict[str, Any], name: str, probes: int) -> int:
    sizes, shape = MODELS[name]
    model = zo.models.LSTM(*sizes, seed=0)
    batch = torch.randint(sizes[0], (2, *shape), generator=torch.Generator().manual_seed(0))
    opt = zo.optim.CDRGE(model.parameters(), lr=2**-7, eps=2**-7, probes=probes, seed=0)
    state[f"{name}, n={probes}"] = model, opt, batch
    _steps(state, name, probes)
    return sum(p.numel() for p in model.parameters())


def _steps(state: dict[str, Any], name: str, probes: int) -> tuple[float, float]:
    """Seconds of a step, and of this process's time on cores in all of them."""
    model, opt, (tokens, targets) = state[f"{name}, n={probes}"]
    begin, worked = time.perf_counter(), time.process_time()
    for _ in range(STEPS):
        opt.step(model.population(tokens, targets))
    return (time.perf_counter() - begin) / STEPS, time.process_time() - worked


def busy_seconds() -> float:
    """Of all cores and processes since the machine was started."""
    user, nice, system, _idle, _iowait, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def table(content: dict[str, Any]) -> str:
    lines = ["| figure | | bar | |", "|---|---|---|---|"]
    for f in content["figures"]:
        met = f["figure"] <= f["at_most"] if "at_most" in f else f["figure"] >= f["at_least"]
        bar = f"at most {f['at_most']:g}" if "at_most" in f else f"at least {f['at_least']:g}"
        least = f" (least: {f['ratio_of_least']:.3g}, work: {f['ratio_of_work']:.3g})" if "ratio_of_least" in f else ""
        lines.append(f"| {f['name']} | {f['figure']:.4g}{least} | {bar} | {'met' if met else 'MISSED'} |")
    lines += ["", "| exchange, ms | W | n | median | least | p95 |", "|---|---|---|---|---|---|"]
    for e in sorted(content["exchange"], key=lambda e: (e["processes"], e["probes"])):
        figures = " | ".join(f"{e[key]:.2f}" for key in ("median_ms", "least_ms", "p95_ms"))
        lines.append(f"| {e['way']} | {e['processes']} | {e['probes']} | {figures} |")
    lines += ["", "| step of an LSTM, ms | W | n | median | least | on a core | others' cores |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for s in content["steps"]:
        seconds = " | ".join(f"{1e3 * s[key]:.1f}" for key in ("median", "least", "core_seconds"))
        setting = f"{s['model']}, {s['parameters']:,} parameters | {s['processes']} | {s['probes']}"
        lines.append(f"| {setting} | {seconds} | {s['cores_of_others']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
    main()
