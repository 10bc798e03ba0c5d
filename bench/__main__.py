"""`python -m bench [pytest options]`: measures, prints the table and writes bench/results/cpu.json.

Options go to pytest: `python -m bench -k apply`. The file is written only by a full run (no options). A figure is the
median of ratios taken in turns within one run; the bar of each stands beside it.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import zo_kernels as zo
from zo_kernels import _C

RESULTS = Path(__file__).parent / "results"


def main(options: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw.json")
        quiet = ["--benchmark-json", str(raw), "--benchmark-disable-gc", "-q", "-p", "no:cacheprovider"]
        code = int(pytest.main([str(Path(__file__).parent), *quiet, *options]))
        if not raw.exists() or not raw.read_text():
            return code
        figures = [figure(entry) for entry in json.loads(raw.read_text())["benchmarks"]]
    print()
    print(table(figures))
    if code == 0 and not options:
        RESULTS.mkdir(exist_ok=True)
        result = RESULTS / "cpu.json"
        result.write_text(
            json.dumps({"machine": machine(), "command": "python -m bench", "figures": figures}, indent=1) + "\n"
        )
        print(f"\nwritten to {result.relative_to(Path.cwd()) if result.is_relative_to(Path.cwd()) else result}")
    return code


def figure(entry: dict[str, Any]) -> dict[str, Any]:
    return {"name": entry["name"].removeprefix("test_"), "rounds": entry["stats"]["rounds"], **entry["extra_info"]}


def table(figures: list[dict[str, Any]]) -> str:
    lines = ["| figure | ours, ms | rival, ms | ratio | bar | |", "|---|---|---|---|---|---|"]
    for f in figures:
        if f["at_most"] is not None:
            bar, met = f"at most {f['at_most']:g}", f["figure"] <= f["at_most"]
        elif f["at_least"]:
            bar, met = f"at least {f['at_least']:g}", f["figure"] >= f["at_least"]
        else:
            bar, met = "", None
        times = [f"{f[key]:.4g}" if key in f else "" for key in ("ours_ms", "rival_ms")]
        verdict = "" if met is None else "met" if met else "MISSED"
        lines.append(f"| {f['name']} | {times[0]} | {times[1]} | {shown(f['figure'])} | {bar} | {verdict} |")
    return "\n".join(lines)


def shown(figure: float) -> str:
    """Three digits, of what is missing to 1 where that is little."""
    return f"1 - {1 - figure:.2g}" if 0.999 < figure < 1 else f"{figure:.3g}"


def machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the host."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": f"{fields.get('model name', platform.machine())}, family {fields.get('cpu family', '?')}",
        "cores": os.cpu_count(),
        "isa": _C.active_isa(),
        "compiler": _C.compiler,
        "zo_kernels": zo.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
