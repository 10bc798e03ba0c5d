"""`python -m bench.scaling`: the plan to 1,000 GPUs: seconds, speed-up and bytes of a step, by formula and simulated.

Constants of the CPU come from bench/results/distributed.json, those of GPUs and networks from documents or estimates
that CONSTANTS names; none of the latter is verified on a GPU yet. Writes bench/results/scaling.json, and the picture of
docs/scaling.md.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.__main__ import RESULTS, machine
from bench.scaling_model import Failures, Link, Work, at_share, exchange, goodput, message, sent, simulate, step

IMAGE = RESULTS.parent.parent / "docs" / "images" / "scaling.png"
RANKS = (1, 2, 4, 8, 64, 256, 1000)
PROBES = (96, 512, 4096)
SHARES = (0.03, 0.1, 0.5)
STEPS = 20
PAPER_PROBE = 4.4 * 8 / 512
"""Seconds of a probe of the paper's 1.1B model: 512 on 8 GPUs take 4.4 s, with its broadcast and reduction."""

NCCL = Link("NCCL ring", 53.6e-6, 0.85e-6, 2.7e-6, 12.5e9, per_node=8)
PARAMETERS = 1_162_045_100
LARGE = Work("1.1B, GPUs", 512, PAPER_PROBE, PARAMETERS / 1e13, digest=PARAMETERS * 50 / 4.3e12, jitter=0.02)
GPU_FAILURES = Failures(between=54 * 86400 * 16384 / 419, restart=60.0)
CONSTANTS = {
    "1.1B, seconds of a probe": "the paper's 4.4 s a step, 512 probes, 8 GPUs; upper bound",
    "1.1B, update": "1e13 element-seeds/s: predicted for an H200 (bench/NOTES.md), not yet verified on a GPU",
    "1.1B, digest": "50 bytes an element at 4.3 TB/s: estimate",
    "GPUs, jitter 0.02": "assumption",
    "NCCL, near and far": "ring, protocol LL, in NCCL's cost model (its src/graph/tuning.cc): 0.47 us x 1.8; 2.7 us",
    "NCCL, setup": "3.6 us there, and 50 us for a launch and the copies to the GPU and back: assumption",
    "NCCL, bandwidth": "a quarter, for LL, of 400 Gbit/s",
    "GPUs, failures": "419 unexpected interruptions in 54 days of 16,384 GPUs (Llama 3, arXiv 2407.21783, table 5)",
    "GPUs, restart 60 s": "assumption",
    "gloo": "loopback as measured; between nodes 25 us more and 25 Gbit/s: assumption",
    "CPU, update": "110e9 element-seeds/s and core (bench/NOTES.md)",
}


def main() -> None:
    results = json.loads((RESULTS / "distributed.json").read_text())
    plans = [(LARGE, NCCL, GPU_FAILURES), *((small(results), link, GPU_FAILURES) for link in between_nodes(results))]
    rows = [row(replace(work, probes=n), link, w, fails) for work, link, fails in plans for n in PROBES for w in RANKS]
    stops = [limits(replace(work, probes=n), link) for work, link, _ in plans for n in PROBES]
    checked = check(results)
    content = {
        "machine": machine(),
        "command": "python -m bench.scaling",
        "constants": CONSTANTS,
        "plans": [{"work": asdict(w), "link": asdict(li), "failures": asdict(f)} for w, li, f in plans],
        "check": checked,
        "rows": rows,
        "limits": stops,
    }
    (RESULTS / "scaling.json").write_text(json.dumps(content, indent=1) + "\n")
    draw(plans, IMAGE)
    print("\n\n".join([table(rows), limit_table(stops), check_table(checked)]))


def of_cpu(results: dict[str, Any], model: str) -> Work:
    """From the least seconds of steps with few and many probes on one process."""
    alone = [s for s in results["steps"] if (s["model"], s["processes"]) == (model, 1)]
    few, many = sorted(alone, key=lambda s: s["probes"])
    update = many["parameters"] / 110e9
    slope = (many["least"] - few["least"]) / (many["probes"] - few["probes"])
    logs = [math.log(s) for s in many["seconds"]]
    jitter = 1.4826 * statistics.median(abs(x - statistics.median(logs)) for x in logs)  # of what is usual: robust
    fixed = max(0.0, few["least"] - few["probes"] * slope)
    return Work(f"{model}, CPU", many["probes"], slope - update, update, fixed, jitter=jitter)


def small(results: dict[str, Any]) -> Work:
    return replace(of_cpu(results, "20k"), name="20k, one core a rank")


def loopback(results: dict[str, Any]) -> Link:
    """From the least times. What a hop takes alone is near, what an exchange of two ranks takes beyond it is setup.

    post is an upper bound: four ranks had two cores.
    """
    took = {(e["way"], e["processes"]): e["least_ms"] / 1e3 for e in results["exchange"] if e["probes"] == 96}
    found = results["loopback"]
    near = found["small_seconds"] / 2
    bandwidth = found["hop_bytes"] / (found["large_seconds"] - found["small_seconds"])
    post = (took["all_to_all_single", 4] - took["all_to_all_single", 2]) / 2
    setup = max(0.0, took["Replicas.exchange", 2] - near - post)
    return Link("gloo, all at once", setup, near, near, bandwidth, 64, "direct", post)


def between_nodes(results: dict[str, Any]) -> list[Link]:
    """As it is, and with log2 W rounds, which is not built."""
    direct = loopback(results)
    direct = replace(direct, far=direct.near + 25e-6, bandwidth=25e9 / 8)
    return [direct, replace(direct, name="gloo, log2 W rounds", algorithm="bruck", post=0.0)]


def row(work: Work, link: Link, ranks: int, failures: Failures) -> dict[str, Any]:
    alone, seconds = step(work, link, 1), step(work, link, ranks)
    return {
        "work": work.name,
        "link": link.name,
        "probes": work.probes,
        "ranks": ranks,
        "seconds": seconds,
        "simulated": simulate(work, link, ranks, STEPS) / STEPS,
        "speed_up": alone / seconds,
        "with_batch_axis": alone / step(work, link, ranks, batch=True),
        "exchange": exchange(link, ranks, message(work.probes, ranks)) / seconds,
        "update": work.same / seconds,
        "bytes": sent(work.probes, ranks),
        "goodput": goodput(work, link, ranks, failures),
    }


def limits(work: Work, link: Link) -> dict[str, Any]:
    """Ranks from which on the exchange takes each share, of probes alone and with the batch axis."""
    return {
        "work": work.name,
        "link": link.name,
        "probes": work.probes,
        "probes_alone": {f"{s:.0%}": at_share(work, link, s) for s in SHARES},
        "with_batch_axis": {f"{s:.0%}": at_share(work, link, s, batch=True) for s in SHARES},
    }


def check(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The tiny LSTM's steps as measured and as the model has them; ranks share the cores that others left."""
    work, link, found = of_cpu(results, "tiny"), loopback(results), []
    for measured in results["steps"]:
        if (measured["model"], measured["probes"]) != ("tiny", work.probes):
            continue
        ranks = measured["processes"]
        slow = max(1.0, ranks / max(1.0, results["machine"]["cores"] - measured["cores_of_others"]))
        here = replace(work, probe=slow * work.probe, update=slow * work.update, fixed=slow * work.fixed)
        found.append(
            {
                "processes": ranks,
                "median": measured["median"],
                "least": measured["least"],
                "formula": step(here, link, ranks),
                "simulated": simulate(here, link, ranks, 200) / 200,
            }
        )
    return found


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| | n | W | step, s | simulated | speed-up | with the batch axis | exchange | update | KB a rank | goodput |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        seconds = f"{r['seconds']:.3g} | {r['simulated']:.3g} | {r['speed_up']:.3g} | {r['with_batch_axis']:.3g}"
        shares = f"{r['exchange']:.2%} | {r['update']:.1%} | {r['bytes'] / 1e3:.3g} | {r['goodput']:.4f}"
        lines.append(f"| {r['work']}, {r['link']} | {r['probes']} | {r['ranks']} | {seconds} | {shares} |")
    return "\n".join(lines)


def limit_table(stops: list[dict[str, Any]]) -> str:
    lines = [
        "| exchange's share from W on | n | " + " | ".join(f"{s:.0%}" for s in SHARES) + " | with the batch axis: "
        "" + " | ".join(f"{s:.0%}" for s in SHARES) + " |",
        "|---|---|" + "---|" * 2 * len(SHARES),
    ]
    for s in stops:
        found = [*s["probes_alone"].values(), *s["with_batch_axis"].values()]
        shown = " | ".join("> 100,000" if w is None else f"{w}" for w in found)
        lines.append(f"| {s['work']}, {s['link']} | {s['probes']} | {shown} |")
    return "\n".join(lines)


def check_table(checked: list[dict[str, Any]]) -> str:
    lines = ["| W, loopback | measured, ms | least | formula | simulated | off |", "|---|---|---|---|---|---|"]
    for c in checked:
        times = " | ".join(f"{1e3 * c[key]:.1f}" for key in ("median", "least", "formula", "simulated"))
        lines.append(f"| {c['processes']} | {times} | {c['simulated'] / c['median'] - 1:+.1%} |")
    return "\n".join(lines)


def draw(plans: list[tuple[Work, Link, Failures]], path: Path) -> None:
    """Speed-up over one rank, and the exchange's share of a step, by the number of ranks."""
    ranks = sorted({round(2 ** (i / 4)) for i in range(41)})
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    axes[0].plot(ranks, ranks, color="#9aa0a6", linewidth=1, label="ideal")
    for (work, link, _), color in zip(plans, ("#1f77b4", "#d62728", "#2ca02c"), strict=True):
        for n, style in ((512, "-"), (4096, "--")):
            some = replace(work, probes=n, jitter=0.0)
            label = f"{work.name.split(',')[0]}, {link.name}, n={n}"
            sped = [step(some, link, 1) / step(some, link, w, batch=True) for w in ranks]
            part = [exchange(link, w, message(n, w, True)) / step(some, link, w, batch=True) for w in ranks]
            axes[0].plot(ranks, sped, style, color=color, label=label)
            axes[1].plot(ranks[1:], [100 * p for p in part[1:]], style, color=color)
    for axis, label in zip(axes, ("speed-up, probes and then the batch shared", "exchange, % of a step"), strict=True):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("ranks")
        axis.set_title(label, fontsize=10)
        axis.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1024"])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks([1, 10, 100, 1000], ["1", "10", "100", "1000"])
    axes[1].set_ylim(1e-3, 150)
    axes[1].axhline(3, color="#9aa0a6", linewidth=1)
    axes[1].set_yticks([0.001, 0.01, 0.1, 1, 3, 10, 100], ["0.001", "0.01", "0.1", "1", "3", "10", "100"])
    axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main()
