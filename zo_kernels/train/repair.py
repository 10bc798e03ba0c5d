"""When ranks hold different parameters: whose are wrong, and how they come right again."""

from __future__ import annotations

from ..errors import ReplicaError, ReplicasDifferError, rank_names
from .begin import Beginning, share_state
from .config import read_config
from .ranks import Ranks
from .record import Record
from .restore import restore
from .solvers import ZeroOrderSolver


def repair(error: ReplicasDifferError, beginning: Beginning, ranks: Ranks, record: Record) -> None:
    """Rebuilds the parameters from the journal, on all ranks, if the config says so.

    Every rank calls it. Raises ReplicaError, which names the ranks that were wrong, if it does not, and if no rank has
    the parameters that the journal says.
    """
    run, folder = beginning.run, beginning.folder
    if error.step == beginning.first_step:
        raise error  # there is no row yet that could tell
    solver = run.solver
    assert isinstance(solver, ZeroOrderSolver)

    def rebuild() -> list[int]:
        assert folder is not None
        restore(folder.path, read_config(folder.path), folder.journal, solver, error.step, record.warn)
        right = solver.optimizer.digest()
        return [rank for rank, digest in enumerate(error.digests) if digest != right]

    wrong = ranks.broadcast(rebuild)
    if len(wrong) == ranks.count:
        raise ReplicaError(f"no rank holds the parameters that the journal says for step {error.step}: resume the run")
    found = f"before step {error.step}, {rank_names(wrong)} did not hold the parameters that the journal says"
    if not run.config.repair:
        raise ReplicaError(f"{found}, as if memory had failed there: resume the run, or give --repair to go on at once")
    share_state(run, ranks)
    record.warn(f"{found}; they were rebuilt from the journal")
