"""Errors of a training step, which leave the parameters as they were before it, and of the files of a run."""


class DivergenceError(RuntimeError):
    """The loss of every probe was NaN or infinite: there is nothing to step along."""


class GridRangeError(RuntimeError):
    """The grid does not fit: a parameter is or could step outside the range in which it is exact, or eps is finer.

    Also raised where parameters are too large for bfloat16 products at this eps.
    """


class ReplicaError(RuntimeError):
    """Another replica failed, or does not hold the same parameters."""


class JournalError(RuntimeError):
    """A run's journal can't be read or written, is damaged, or is not the journal of this run."""


class CheckpointError(RuntimeError):
    """A checkpoint can't be read or written, or is damaged."""
