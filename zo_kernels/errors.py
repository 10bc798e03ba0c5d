"""Errors of a training step. Both leave the parameters as they were before the step."""


class DivergenceError(RuntimeError):
    """The loss of every probe was NaN or infinite: there is nothing to step along."""


class GridRangeError(RuntimeError):
    """The grid does not fit: a parameter is or could step outside the range in which it is exact, or eps is finer.

    Also raised where parameters are too large for bfloat16 products at this eps.
    """
