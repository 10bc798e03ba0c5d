"""Training runs as trials: the command line in a process of its own, with a run folder that it resumes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from .fresh import environment
from .trials import Settings

_THIN = 100
"""Validations that are kept of a run: all of them in those of the tables."""


def train(settings: Settings, runs: Path, extra: Mapping[str, object], watched: str = "validation") -> dict[str, Any]:
    """Trains as `python -m zo_kernels.train` does, and returns what came of it.

    settings: flags, by their names with underscores. extra: flags that the outcome does not depend on.
    runs: folder for the run's folder, which is removed at the end. A run that was stopped goes on.
    watched: the set of which the best step is taken.

    Raises RuntimeError with the last line of the run if it can't start, and KeyboardInterrupt if it was stopped.
    """
    folder = runs / folder_of(settings)
    begun = (folder / "config.json").exists()
    arguments = ["--resume", str(folder)] if begun else ["--out", str(folder), *_flags(settings)]
    arguments += [*_flags(extra), *(["--allow-import"] if begun else [])]
    command = [sys.executable, "-m", "zo_kernels.train", *arguments]
    ran = subprocess.run(command, env=environment(), capture_output=True, text=True)
    if not (folder / "metrics.jsonl").exists():
        raise RuntimeError(f"{' '.join(arguments)}: {(ran.stderr or ran.stdout).strip().splitlines()[-1]}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    is_over = lines[-1]["step"] >= int(settings["steps"]) or "stopped after step" in ran.stdout + ran.stderr
    if not is_over:  # by a signal: the run goes on another time
        raise KeyboardInterrupt
    found = summary(lines, watched)
    shutil.rmtree(folder)
    return found


def folder_of(settings: Settings) -> str:
    """The name of the folder of a run, which follows from its settings."""
    return sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()[:16]


def summary(lines: list[dict[str, Any]], watched: str) -> dict[str, Any]:
    """Of the lines of metrics.jsonl: each validation, the best one of the set, and the last line's test.

    forwards: forward passes of a step; a backward pass counts as two.
    """
    loss, accuracy = f"{watched}_loss", f"{watched}_accuracy"
    curve = [[line["step"], round(line[loss], 4), round(line[accuracy], 4)] for line in lines if loss in line]
    best = min(curve, key=lambda point: point[1])
    last = lines[-1]
    forwards = last.get("forwards", 0) // max(1, last["step"])
    tests: dict[str, Any] = {key: round(last[key], 4) for key in ("test_loss", "test_accuracy") if key in last}
    keep = max(1, len(curve) // _THIN)
    return {
        "steps": last["step"],
        "forwards": forwards,
        "best": {"step": best[0], "loss": best[1], "accuracy": best[2]},
        **tests,
        "curve": [point for i, point in enumerate(curve) if i % keep == 0 or point is best],
    }


def _flags(settings: Mapping[str, object]) -> list[str]:
    return [text for key, value in settings.items() for text in (f"--{key.replace('_', '-')}", str(value))]
