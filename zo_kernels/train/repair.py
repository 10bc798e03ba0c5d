"""What to do when ranks hold different parameters: find out whose are wrong, and repair them."""

from __future__ import annotations

from typing import Any

from ..errors import ReplicaError, ReplicasDifferError, format_ranks
from .begin import Beginning, share_state
from .config import read_config
from .ranks import Ranks
from .record import Record
from .restore import restore


def repair(error: ReplicasDifferError, beginning: Beginning, ranks: Ranks, record: Record) -> None:
    """Rebuilds the parameters of all ranks from the journal, if the config's `repair` is set. Every rank calls this.

    Raises ReplicaError, naming the ranks that were wrong, if `repair` is not set, or if no rank has the parameters of
    the journal. Raises the error itself if steps of the solver can't be replayed.
    """
    run, folder = beginning.run, beginning.folder
    solver = run.solver
    if error.step == beginning.first_step or not solver.replays:
        raise error  # the journal has nothing to compare with

    def rebuild() -> list[int]:
        assert folder is not None
        restore(folder.path, read_config(folder.path), folder.journal, solver, error.step, record.warn, run.batch)
        right = solver.digest()
        return [rank for rank, digest in enumerate(error.digests) if digest != right]

    def read(value: Any) -> list[int]:
        match value:
            case [*found] if all(type(rank) is int and 0 <= rank < ranks.count for rank in found):
                return found
        raise ValueError("it is no list of ranks")

    wrong = ranks.broadcast(rebuild, read)
    if len(wrong) == ranks.count:
        raise ReplicaError(f"no rank holds the parameters of the journal before step {error.step}: resume the run")
    found = f"before step {error.step}, {format_ranks(wrong)} did not hold the parameters of the journal"
    if not run.config.repair:
        raise ReplicaError(f"{found}, perhaps because memory failed: resume the run, or give --repair to go on at once")
    share_state(run, ranks)
    record.warn(f"{found}; they were rebuilt from the journal")
