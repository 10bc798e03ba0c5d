"""Reads what a plot needs from the folder of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import JournalError, UsageError
from ..run.config import read_values
from ..run.entries import JOURNAL, check_entries
from ..run.files import read_json, read_text
from ..run.folder import VOCABULARY_LIMIT
from ..run.journal import Journal
from ..run.metrics import ADDED, MEMORY, PerStep, as_written, metrics_from_journal

_NO_DIFFERENCE = (
    *("out", "threads", "device", "allow_import", "eval_batch_size", "checkpoint_every", "keep_checkpoints", "log"),
    *("validate_every", "timeout", "check_every", "resume", "keep", "patience"),
    *("loop", "build", "tensors"),
)
"""Flags that do not change what a run learns."""
_FIRST = ("task", "preset", "model")
"""Flags that many others depend on."""
NUMERIC = ("series",)
"""Tasks whose losses are mean squared errors."""
_MOST_SHOWN = 4
_LIMIT = 1 << 30
"""Bytes that a file may have: five million steps."""


@dataclass(frozen=True)
class PlottedRun:
    """A run to plot.

    path: its folder, as given. config: its config.json. metrics: the lines of its metrics.jsonl. vocab_size: the number
    of its tokens; None if it does not say.
    """

    path: Path
    config: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    vocab_size: int | None = None

    def curve(self, x: str, name: str) -> tuple[list[float], list[float]]:
        """Returns x where a metric was measured, and its values. x: "steps", "forwards", "seconds" or "tokens"."""
        points = [(at, float(line[name])) for line in self.lines(name) if (at := self.at(line, x)) is not None]
        if [at for at, _ in points] == [0] and len(self.lines(name)) > 1:  # it says so of the first line alone
            return [], []
        return [at for at, _ in points], [value for _, value in points]

    def lines(self, name: str) -> list[Mapping[str, Any]]:
        """Returns the lines that have a metric."""
        return [line for line in self.metrics if line.get(name) is not None]

    def curves(self) -> list[str]:
        """Returns the names of the metrics that can be drawn."""
        names = dict.fromkeys(name for line in self.metrics for name, value in line.items() if value is not None)
        return [name for name in names if name.endswith(("_loss", "_accuracy")) or name in MEMORY]

    def at(self, line: Mapping[str, Any], x: str) -> float | None:
        """Returns where on a horizontal axis a line of the metrics is; None if it does not say."""
        if x == "steps" or line["step"] == 0:
            return int(line["step"])
        if x == "forwards" and x not in line:  # older runs do not say: each was one of central differences
            probes = self.config.get("probes")
            return None if probes is None else 2.0 * probes * line["step"]
        return line.get(x)


def read_run(path: Path) -> PlottedRun:
    """Reads a run's config and its metrics so far.

    Raises UsageError if there is no such folder, or its config.json or metrics.jsonl is missing or not the trainer's,
    and if the metrics are not those of the journal.
    """
    if not os.path.isdir(path):  # False for a name too long, too
        raise UsageError(f"there is no run folder {path}")
    config = read_values(_text(path / "config.json"), str(path / "config.json"))
    *lines, rest = _text(path / "metrics.jsonl").split("\n")
    lines += [rest] if "}" in rest else []  # else it is half a line of a run that goes on or was killed
    metrics = [_decode(path / "metrics.jsonl", line) for line in lines]
    if not all(isinstance(line.get("step"), int) for line in metrics):
        raise UsageError(f"{path / 'metrics.jsonl'} is not the metrics of a run: a line has no step")
    _check_metrics(path, metrics)
    is_text = config.get("task") not in NUMERIC
    return PlottedRun(path, config, metrics, _vocab_size(path / "vocabulary.json") if is_text else None)


def names_of(runs: Sequence[PlottedRun]) -> list[str]:
    """Returns the names of the runs' folders, or their paths if two have the same name."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def labels(runs: Sequence[PlottedRun]) -> list[str]:
    """Returns a label for each run: the flags that differ, its solver, and the name of its folder.

    Folders of the same name are named by their paths.
    """
    flags = dict.fromkeys((*_FIRST, *(name for run in runs for name in run.config)))
    differing = [
        name
        for name in flags
        if name not in _NO_DIFFERENCE and len({json.dumps(run.config.get(name)) for run in runs}) > 1
    ]
    return [_label(name, run.config, differing) for name, run in zip(names_of(runs), runs, strict=True)]


def _label(name: str, config: Mapping[str, Any], differing: Sequence[str]) -> str:
    parts = [f"{flag.replace('_', ' ')} {config[flag]}" for flag in differing if config.get(flag) not in (None, "", [])]
    more = [] if len(parts) <= _MOST_SHOWN else ["..."]
    flags = [*parts[:_MOST_SHOWN], *more]
    solver = str(config.get("solver", "zo"))
    if solver != "bptt":
        solver += f" with {config.get('probes')} probes"
    if "solver" in differing or "probes" in differing:
        flags = [part for part in flags if not part.startswith(("solver ", "probes "))]
    return f"{', '.join([*flags, solver])} ({name})"


def _check_metrics(run: Path, metrics: Sequence[Mapping[str, Any]]) -> None:
    """Compares the lines of metrics.jsonl with the journal, which has digests. Without a whole journal they count."""

    def damage(what: str) -> UsageError:
        return UsageError(f"{run / 'metrics.jsonl'} is damaged: {what} not those of {JOURNAL}; --resume writes it anew")

    steps = [line["step"] for line in metrics]
    if any(before >= after for before, after in pairwise(steps)):
        raise damage("its steps are")
    lines = dict(zip(steps, metrics, strict=True))
    totals = [metrics[-1].get(name) if steps and steps[-1] else None for name in PerStep._fields]
    per_step = PerStep(*(total // steps[-1] if isinstance(total, int) else 0 for total in totals))
    check_entries(run)
    with suppress(JournalError), Journal.open(run / JOURNAL, writable=False) as journal:
        if steps and not journal.first_step <= steps[-1] <= journal.next_step:
            raise damage("its steps are")
        for metrics_then in metrics_from_journal(journal, per_step):
            expected = as_written(metrics_then)
            line = lines.get(metrics_then["step"], expected)
            for name in ADDED - line.keys():  # as in older runs
                expected.pop(name, None)
            if line != expected:
                raise damage(f"the values of step {expected['step']} are")


def _vocab_size(file: Path) -> int | None:
    """Number of tokens of a run; None if it is of an old version, which did not write them."""
    try:
        symbols = read_json(file, VOCABULARY_LIMIT)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} can't be read: {error}") from error
    if not isinstance(symbols, list) or not symbols:
        raise UsageError(f"{file} is not a vocabulary: it must be a JSON list")
    return len(symbols)


def _text(file: Path) -> str:
    try:
        return read_text(file, _LIMIT)
    except FileNotFoundError as error:
        raise UsageError(f"{file.parent} is not the folder of a run: it has no {file.name}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"can't read {file}: {error}") from error


def _decode(file: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UsageError(f"{file} is not what a run writes: it holds {text.strip()[:40]!r} and not an object")
    return value
