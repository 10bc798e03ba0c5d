"""Errors of a training step. Both leave the parameters as they were before the step."""


class DivergenceError(RuntimeError):
    """The loss of every probe was NaN or infinite: there is nothing to step along."""


class GridRangeError(RuntimeError):
    """A parameter is, or the step could take it, outside the range in which the float32 grid is exact."""
