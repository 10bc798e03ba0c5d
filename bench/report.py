"""What the scripts share: where results lie, what they depend on, and how they are written and shown."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

import zo_kernels as zo
from zo_kernels import _C

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
IMAGES = ROOT / "docs" / "images"


def machine() -> dict[str, Any]:
    """What figures depend on; nothing that names the host."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "processor": f"{fields.get('model name', platform.machine())}, family {fields.get('cpu family', '?')}",
        "cores": os.cpu_count(),
        "isa": _C.active_isa(),
        "compiler": _C.compiler,
        "zo_kernels": zo.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
    }


def commit() -> str | None:
    """The checkout's commit, with a + if its code is changed; None where that is not known."""
    try:
        git = ["git", "-C", str(ROOT)]
        found = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout
        code = ["--", "zo_kernels", "csrc", "python", "bench/*.py"]
        changed = subprocess.run(
            [*git, "status", "--porcelain", *code], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.strip() + ("+" if changed.strip() else "")


def write(path: Path, content: Mapping[str, Any]) -> None:
    """As JSON; all of it or nothing, whatever ends the process."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_text(text)
    os.replace(beside, path)


def shown(path: Path) -> str:
    """A path as a user of this directory would write it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def table(figures: Sequence[Mapping[str, Any]]) -> str:
    """Of figures: "name", "figure", perhaps a bar ("at_most" or "at_least"), "ours_ms", "rival_ms" and "unit"."""
    lines = ["| figure | ours, ms | rival, ms | value | bar | |", "|---|---|---|---|---|---|"]
    for f in figures:
        at_most, at_least = f.get("at_most"), f.get("at_least")
        bar = f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}" if at_least else ""
        met = f["figure"] <= at_most if at_most is not None else f["figure"] >= (at_least or 0)
        verdict = ("met" if met else "MISSED") if bar else ""
        times = " | ".join(f"{f[key]:.4g}" if key in f else "" for key in ("ours_ms", "rival_ms"))
        value = f"{digits(f['figure'])} {f.get('unit', '')}".strip()
        lines.append(f"| {f['name']} | {times} | {value} | {bar} | {verdict} |")
    return "\n".join(lines)


def digits(figure: float) -> str:
    """Three, of what is missing to 1 where that is little."""
    return f"1 - {1 - figure:.2g}" if 0.999 < figure < 1 else f"{figure:.3g}"
