"""Losses at sharded parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from torch import Tensor

from ..params.layout import is_dtensor
from ..params.sharded import ShardedArena
from ..perturb import Displacement, Perturbation
from .evaluators import Closure, ClosureEvaluator

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class ShardedClosureEvaluator(ClosureEvaluator):
    """Calls the closure at each point on all processes of a shard group; a loss is the mean of theirs.

    Each process may have its own part of the batch. They exchange the losses of a call in one all_gather.
    """

    def __init__(self, closure: Closure, theta: Perturbation, eps: Sequence[float], arena: ShardedArena) -> None:
        super().__init__(lambda: _whole(closure()), theta, eps)
        self._arena = arena

    def _at(self, points: Sequence[Sequence[Displacement]]) -> Tensor:
        return self._arena.mean(super()._at(points))


def _whole(loss: Tensor | float) -> Tensor | float:
    """A loss computed from DTensors is one itself."""
    return cast("DTensor", loss).full_tensor() if is_dtensor(loss) else loss
