"""`python -m bench.plot`: draws docs/images/forward.png from bench/results/cpu.json; 5 seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from bench.report import RESULTS

IMAGE = RESULTS.parent.parent / "docs" / "images" / "forward.png"
SETTINGS = {
    "tiny": "150k parameters, 12 heads,\n1024 sequences of 10 tokens, 96 probes",
    "B=1": "92k parameters, 4 heads,\n1 sequence of 100 tokens, 512 probes",
}
COLORS = ("#9aa0a6", "#1f77b4", "#2ca02c")


def steps(figures: list[dict[str, Any]], setting: str) -> dict[str, tuple[float, float]]:
    """Seconds of a step on one thread, and how much faster that is than through torch, by the way it takes."""
    found: dict[str, tuple[float, float]] = {}
    for f in figures:
        if not f["name"].startswith("step_over_probe_by_probe") or "threads=1" not in f["name"]:
            continue
        if f["name"].endswith(f"{setting}]"):
            precision = "bfloat16" if "bfloat16" in f["name"] else "float32"
            if precision == "float32":
                found["probe by probe\nthrough torch"] = (f["rival_ms"] / 1e3, 1.0)
            found[f"fused,\n{precision}"] = (f["ours_ms"] / 1e3, f["figure"])
    return found


def draw(path: Path) -> None:
    """Bars of the time of a step, for each setting."""
    results = json.loads((RESULTS / "cpu.json").read_text())
    figure, axes = plt.subplots(1, len(SETTINGS), figsize=(9, 3.4), layout="constrained")
    for axis, (setting, title) in zip(axes, SETTINGS.items(), strict=True):
        bars = steps(results["figures"], setting)
        drawn = axis.bar(list(bars), [s for s, _ in bars.values()], color=COLORS[: len(bars)], width=0.6)
        slowest = max(s for s, _ in bars.values())
        axis.bar_label(drawn, [f"{s:.2g} s\n{faster:.1f}x" for s, faster in bars.values()], padding=2, fontsize=9)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(0, 1.25 * slowest)
        axis.set_ylabel("seconds a step")
        axis.spines[["top", "right"]].set_visible(False)
    machine = results["machine"]
    figure.suptitle(f"CD-RGE step, one thread ({machine['processor'].split(',')[0]}, {machine['isa']})", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    draw(IMAGE)
    print(f"written to {IMAGE.relative_to(Path.cwd()) if IMAGE.is_relative_to(Path.cwd()) else IMAGE}")
