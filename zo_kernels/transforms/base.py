"""What a transform is, and how transforms follow each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..gradient import SeedGradient

State = dict[str, Tensor]
"""What a transform keeps between steps: CPU tensors by name, whose sizes may change. Checkpoints save it."""


class Context(NamedTuple):
    """Of the step: its number from 0, its lr, and the number of parameters d."""

    step: int
    lr: float
    numel: int


class Transform(NamedTuple):
    """Rewrites a gradient's table in O(rows): state = init(), then gradient, state = update(gradient, state, context).

    `update` is a pure function: equal inputs give equal bits, and it modifies none of them. The distribution of the
    probes stays what it was, and must be the same at every step of a run. `update` raises ValueError for a state that
    another transform made.
    """

    init: Callable[[], State]
    update: Callable[[SeedGradient, State, Context], tuple[SeedGradient, State]]


def stateless(rule: Callable[[SeedGradient, Context], SeedGradient]) -> Transform:
    """The transform that keeps nothing between steps."""

    def update(gradient: SeedGradient, state: State, context: Context) -> tuple[SeedGradient, State]:
        check_names(state, set())
        return rule(gradient, context), {}

    return Transform(dict, update)


def chain(*transforms: Transform) -> Transform:
    """Each transform of what the one before it gave; without any, the gradient itself.

    The state holds the tensors of transform i as "i.NAME".
    """

    def init() -> State:
        return {f"{i}.{name}": value for i, each in enumerate(transforms) for name, value in each.init().items()}

    def update(gradient: SeedGradient, state: State, context: Context) -> tuple[SeedGradient, State]:
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

    return Transform(init, update)


def check_names(state: State, names: set[str]) -> None:
    """Raises ValueError unless the tensors of `state` have these names."""
    if state.keys() != names:
        raise ValueError(
            f"the state is of another transform: it holds {', '.join(sorted(state)) or 'nothing'}, "
            f"this one {', '.join(sorted(names)) or 'nothing'}"
        )
