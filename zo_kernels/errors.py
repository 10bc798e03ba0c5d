"""The errors of this package. An error in a training step leaves the parameters as they were before the step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch


class UsageError(Exception):
    """The user asked for something that can't be done. The message says why, in one sentence."""


class DivergenceError(RuntimeError):
    """The loss of every probe was NaN or infinite, so there is no direction to step in."""


class GridRangeError(RuntimeError):
    """The grid does not fit: a parameter is or could step outside its exact range, or eps is finer than its spacing.

    Also raised if parameters are too large for bfloat16 products at this eps.
    """


class ReplicaError(RuntimeError):
    """Another replica failed, died, did not answer, or is at another step."""


class ReplicaStoppedError(ReplicaError):
    """Another replica was interrupted by Ctrl-C or SIGTERM."""


class ReplicasDifferError(ReplicaError):
    """Replicas do not hold the same parameters.

    step: The step before which this was found.
    digests: The digest of each rank's parameters, in order.
    """

    def __init__(self, step: int, digests: Sequence[int]) -> None:
        self.step, self.digests = step, list(digests)
        counts = Counter(self.digests).most_common()
        usual = counts[0][0]
        others = [rank for rank, found in enumerate(self.digests) if found != usual]
        if len(counts) > 1 and counts[1][1] == counts[0][1]:  # there is no majority
            ranks = f"{format_ranks(range(len(self.digests)))} do not all hold the same parameters"
        else:
            ranks = f"{format_ranks(others)} hold{'s' * (len(others) == 1)} other parameters than the rest"
        super().__init__(
            f"{ranks} before step {step}: build the model from the same seed on every rank, and change parameters on "
            "all ranks or none"
        )


class ProcessGroupError(RuntimeError):
    """The processes of a launch did not all meet, or one of them died or did not answer."""


class JournalError(RuntimeError):
    """The journal of a run can't be read or written, is damaged, or belongs to another run."""


class CheckpointError(RuntimeError):
    """A checkpoint can't be read or written, or is damaged."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, of Python, of torch on the CPU, or on a GPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def format_ranks(numbers: Sequence[int]) -> str:
    """Formats ranks for a message: "rank 1", "ranks 1, 2"."""
    return f"rank{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the kind of the error if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
