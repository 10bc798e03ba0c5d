"""`python -m bench.cpu`: the kernels, the fused forward and a step on the CPU, against their bars; about 5 minutes.

Options go to pytest: `python -m bench.cpu -k apply`. bench/results/cpu.json is written only by a full run (no options).
A figure is the median of ratios taken in turns within one run; the bar of each stands beside it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from bench.report import RESULTS, machine, shown, table, write


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
        result = RESULTS / "cpu.json"
        write(result, {"machine": machine(), "command": "python -m bench.cpu", "figures": figures})
        print(f"\nwritten to {shown(result)}")
    return code


def figure(entry: dict[str, Any]) -> dict[str, Any]:
    return {"name": entry["name"].removeprefix("test_"), "rounds": entry["stats"]["rounds"], **entry["extra_info"]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
