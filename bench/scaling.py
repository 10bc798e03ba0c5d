"""`python -m bench.scaling`: a plan to 1,000 GPUs by a closed formula of a step; measures nothing; 10 seconds.

A step on W ranks: a rank's share of the probes, an exchange of losses, and an update that every rank takes whole. The
constants are from bench/results/distributed.json, from documents, or assumed: docs/scaling.md says which.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

from matplotlib.figure import Figure

from bench.report import IMAGES, RESULTS, machine, shown, write


@dataclass(frozen=True)
class Plan:
    """Seconds: of a probe's two losses on the whole batch, of the update for each probe, of the rest of a step, of an
    exchange whatever its size, of a hop in a node, and of one between two; bandwidth in bytes/s. post: of sending a
    message, where all are sent at once; None where they go around a ring. jitter: of a rank's seconds, as a share."""

    name: str
    probe: float
    update: float
    fixed: float
    setup: float
    near: float
    far: float
    bandwidth: float
    per_node: int
    post: float | None = None
    jitter: float = 0.0

    def exchange(self, n: int, ranks: int, batch: bool = False) -> float:
        between = nodes if (nodes := math.ceil(ranks / self.per_node)) > 1 else 0
        hops = (between * self.far + (ranks - between) * self.near) * (ranks - 1) / ranks  # all links but one
        if self.post is not None:
            hops = (self.far if between else self.near) + (ranks - 1) * self.post
        return self.setup + hops + sent(n, ranks, batch) / self.bandwidth if ranks > 1 else 0.0

    def step(self, n: int, ranks: int, batch: bool = False) -> float:
        """All wait for the slowest: at about the quantile (W - 3/8) / (W + 1/4) of the ranks' seconds."""
        slowest = math.exp(self.jitter * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25)))
        share, parts = shares(n, ranks, batch)
        return share / parts * self.probe * slowest + self.exchange(n, ranks, batch) + n * self.update + self.fixed

    def row(self, n: int, ranks: int) -> dict[str, Any]:
        seconds, both, alone = self.step(n, ranks), self.step(n, ranks, batch=True), self.step(n, 1)
        some = {"step, s": seconds, "speed-up": alone / seconds, "batch shared too": alone / both}
        some |= {"exchange": self.exchange(n, ranks) / seconds, "update": n * self.update / seconds}
        return {"plan": self.name, "n": n, "W": ranks, **some, "KB sent": sent(n, ranks) / 1e3}

    def limits(self, n: int) -> dict[str, Any]:
        """Ranks from which on the exchange takes a share of a step, None beyond 100,000; all ranks being alike."""
        alike = replace(self, jitter=0.0)
        parts = {w: alike.exchange(n, w) / alike.step(n, w) for w in range(100_000, 0, -1)}
        last = {share: next(w for w in parts if parts[w] < share) for share in (0.03, 0.1, 0.5)}
        found = {f"exchange {s:.0%} from W": w + 1 if w < 100_000 else None for s, w in last.items()}
        return {"plan": self.name, "n": n} | found


def shares(n: int, ranks: int, batch: bool = False) -> tuple[int, int]:
    """Probes of a rank, and ranks that share the batch of each: more than one only beyond n ranks, where they may."""
    parts = max(1, ranks // n) if batch else 1
    return math.ceil(n / (ranks // parts)), parts


def sent(n: int, ranks: int, batch: bool = False) -> int:
    """Bytes that a rank sends in a step: to each other one 24, and 16 for each probe of its share."""
    return (ranks - 1) * (24 + 16 * shares(n, ranks, batch)[0])


def of_cpu(measured: dict[str, Any], model: str) -> Plan:
    """From the least times of steps of few and many probes on one process, of messages, and of exchanges."""
    alone = (s for s in measured["steps"] if (s["model"], s["processes"]) == (model, 1))
    few, many = sorted(alone, key=lambda s: s["probes"])
    both = (many["least"] - few["least"]) / (many["probes"] - few["probes"])
    fixed, update = max(0.0, few["least"] - few["probes"] * both), many["parameters"] / 110e9  # bench/NOTES.md
    took = {(e["way"], e["processes"]): e["least_ms"] / 1e3 for e in measured["exchange"] if e["probes"] == 96}
    small, large = (measured["loopback"][f"{size}_seconds"] for size in ("small", "large"))
    near, bandwidth = small / 2, measured["loopback"]["hop_bytes"] / (large - small)
    post = (took["all_to_all_single", 4] - took["all_to_all_single", 2]) / 2  # at most: four ranks had two cores
    setup = max(0.0, took["Replicas.exchange", 2] - near - post)
    return Plan(f"{model}, gloo", both - update, update, fixed, setup, near, near, bandwidth, 64, post)


def plans(measured: dict[str, Any]) -> list[Plan]:
    nccl = Plan("1.1B, NCCL", 4.4 * 8 / 512, 1.162e9 / 1e13, 0.0, 53.6e-6, 0.85e-6, 2.7e-6, 12.5e9, 8, jitter=0.02)
    gloo = of_cpu(measured, "20k")
    return [nccl, replace(gloo, far=gloo.near + 25e-6, bandwidth=25e9 / 8)]


def check(measured: dict[str, Any]) -> list[dict[str, float]]:
    """Steps of the tiny LSTM as measured and by the formula; ranks share the cores that others left."""
    plan, found = of_cpu(measured, "tiny"), []
    for s in (s for s in measured["steps"] if (s["model"], s["probes"]) == ("tiny", 96)):
        slow = max(1.0, s["processes"] / max(1.0, measured["machine"]["cores"] - s["cores_of_others"]))
        here = replace(plan, probe=slow * plan.probe, update=slow * plan.update, fixed=slow * plan.fixed)
        found.append({"W": s["processes"], "measured": s["median"], "formula": here.step(96, s["processes"])})
    return found


def table(rows: list[dict[str, Any]]) -> list[str]:
    cells = [list(rows[0]), *([f"{x:.3g}" if isinstance(x, float) else str(x) for x in r.values()] for r in rows)]
    return [f"| {' | '.join(some)} |" for some in cells]


def main() -> None:
    measured = json.loads((RESULTS / "distributed.json").read_text())
    made = plans(measured)
    tables = {
        "plans": table([asdict(plan) for plan in made]),
        "steps": table([p.row(n, w) for p in made for n in (96, 512, 4096) for w in (1, 8, 64, 256, 1000)]),
        "limits": table([p.limits(n) for p in made for n in (96, 512, 4096)]),
        "check": table(check(measured)),
    }
    print("\n\n".join("\n".join(lines) for lines in tables.values()))
    write(RESULTS / "scaling.json", {"machine": machine(), "command": "python -m bench.scaling", **tables})
    draw(made)
    print(f"\nwritten to {shown(RESULTS / 'scaling.json')} and {shown(IMAGES / 'scaling.png')}")


def draw(plans: list[Plan]) -> None:
    ranks = sorted({round(2 ** (i / 4)) for i in range(41)})
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    axes[0].plot(ranks, ranks, color="#9aa0a6", linewidth=1, label="ideal")
    for plan, color in zip(plans, ("#1f77b4", "#d62728"), strict=True):
        for n, style in ((512, "-"), (4096, "--")):
            seconds = [replace(plan, jitter=0.0).step(n, w, batch=True) for w in ranks]
            axes[0].plot(ranks, [seconds[0] / s for s in seconds], style, color=color, label=f"{plan.name}, n={n}")
            parts = [100 * plan.exchange(n, w, True) / s for w, s in zip(ranks, seconds, strict=True)]
            axes[1].plot(ranks[1:], parts[1:], style, color=color)
    for axis, title in zip(axes, ("speed-up, probes and then the batch shared", "exchange, % of a step"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="ranks", title=title)
        axis.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1024"])
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
    axes[0].legend(fontsize=8, frameon=False)
    axes[1].set_ylim(1e-3, 150)
    figure.savefig(IMAGES / "scaling.png", dpi=130)


if __name__ == "__main__":
    main()
