"""What the command line decides for every table and figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Options:
    """quick: the smallest trials that go the whole way, for a test. threads: of a training run.

    data: folder of the Penn Treebank; without it, what needs it is left out. runs: folder for run folders, from which a
    run that was stopped goes on.
    """

    quick: bool
    threads: int
    runs: Path
    data: Path | None = None
