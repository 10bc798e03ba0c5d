"""Errors of a training step, which leave the parameters as they were before it, and of the files of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


class UsageError(Exception):
    """The user asked for what can't be done; the message is one sentence that says why."""


class DivergenceError(RuntimeError):
    """The loss of every probe was NaN or infinite: there is nothing to step along."""


class GridRangeError(RuntimeError):
    """The grid does not fit: a parameter is or could step outside the range in which it is exact, or eps is finer.

    Also raised where parameters are too large for bfloat16 products at this eps.
    """


class ReplicaError(RuntimeError):
    """Another replica failed, is gone, or is not where it should be."""


class ReplicaStoppedError(ReplicaError):
    """Another replica was interrupted: Ctrl-C or SIGTERM."""


class ReplicasDifferError(ReplicaError):
    """Replicas do not hold the same parameters.

    step: before which it was found. digests: of each rank's parameters, in order.
    """

    def __init__(self, step: int, digests: Sequence[int]) -> None:
        self.step, self.digests = step, list(digests)
        counts = Counter(self.digests).most_common()
        usual = counts[0][0]
        others = [rank for rank, found in enumerate(self.digests) if found != usual]
        if len(counts) > 1 and counts[1][1] == counts[0][1]:  # as many hold one as the other
            ranks = f"{rank_names(range(len(self.digests)))} do not all hold the same parameters"
        else:
            ranks = f"{rank_names(others)} hold{'s' * (len(others) == 1)} other parameters than the rest"
        super().__init__(
            f"{ranks} before step {step}: build the model from the same seed on every rank, and change parameters on "
            "all of them or none"
        )


class ProcessGroupError(RuntimeError):
    """The processes of a launch did not all meet, or one of them died or stopped answering."""


class JournalError(RuntimeError):
    """A run's journal can't be read or written, is damaged, or is not the journal of this run."""


class CheckpointError(RuntimeError):
    """A checkpoint can't be read or written, or is damaged."""


def rank_names(numbers: Sequence[int]) -> str:
    """As messages name them: "rank 1", "ranks 1, 2"."""
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
