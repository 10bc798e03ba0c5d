"""The type of a transform, and `chain`, which applies several in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..gradient import SeedGradient

State = dict[str, Tensor]
"""State of a transform between steps: CPU tensors by name. Their sizes may change. Checkpoints save it."""


class Context(NamedTuple):
    """The step that a transform is applied in.

    step: number of the step, from 0. lr: learning rate of the step. numel: number of parameters, d. eps: by which the
    probes moved the parameters, of the first group that was moved.
    """

    step: int
    lr: float
    numel: int
    eps: float


class Transform(NamedTuple):
    """Rewrites the rows of a gradient in O(rows), as a pair of functions in the manner of optax.

    The functions are those of a module, with their options bound by functools.partial, so that an optimizer can be
    pickled. Start with state = init(), then call gradient, state = update(gradient, state, context) at each step.
    `update` is a pure function: equal inputs give equal bits, and no input is modified. It keeps the distribution of
    the probes, which must be the same at every step of a run. It raises ValueError for the state of another transform.
    """

    init: Callable[[], State]
    update: Callable[[SeedGradient, State, Context], tuple[SeedGradient, State]]


def stateless(rule: Callable[[SeedGradient, Context], SeedGradient]) -> Transform:
    """A transform without state, from a function of the gradient and the context."""
    return Transform(dict, partial(_update_without_state, rule))


def _update_without_state(
    rule: Callable[[SeedGradient, Context], SeedGradient], gradient: SeedGradient, state: State, context: Context
) -> tuple[SeedGradient, State]:
    check_names(state, set())
    return rule(gradient, context), {}


def chain(*transforms: Transform) -> Transform:
    """Applies the transforms in order. An empty chain leaves the gradient unchanged.

    The state has the tensors of transform i under the names "i.NAME".
    """
    return Transform(partial(_init_all, transforms), partial(_update_all, transforms))


def _init_all(transforms: Sequence[Transform]) -> State:
    return {f"{i}.{name}": value for i, each in enumerate(transforms) for name, value in each.init().items()}


def _update_all(
    transforms: Sequence[Transform], gradient: SeedGradient, state: State, context: Context
) -> tuple[SeedGradient, State]:
    parts: list[State] = [{} for _ in transforms]
    for key, value in state.items():
        number, _, name = key.partition(".")
        if not (number.isdecimal() and int(number) < len(parts)):
            raise ValueError(f"the state is of another chain of transforms: this one has no {key!r}")
        parts[int(number)][name] = value
    following: State = {}
    for i, (transform, part) in enumerate(zip(transforms, parts, strict=True)):
        gradient, part = transform.update(gradient, part, context)
        following.update({f"{i}.{name}": value for name, value in part.items()})
    return gradient, following


def check_names(state: State, names: set[str]) -> None:
    """Raises ValueError unless the tensors of `state` have these names."""
    if state.keys() != names:
        raise ValueError(
            f"the state is of another transform: it holds {', '.join(sorted(state)) or 'nothing'}, "
            f"this one {', '.join(sorted(names)) or 'nothing'}"
        )
