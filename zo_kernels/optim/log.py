"""Where an optimizer's steps are recorded, so that they can be taken again without evaluating a loss."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor

from ..estimators import Estimate


class StepLog(Protocol):
    """A record of steps, which an optimizer asks before it measures losses and tells before it changes parameters."""

    def find(self, step: int, eps: Sequence[float]) -> tuple[Tensor, float] | None:
        """The coefficients and the loss of a step that was taken before, which is then taken again from them.

        eps: that of each parameter group. The coefficients are float32 [probes]. None: the step has to be measured.
        """
        ...

    def recording(self, estimate: Estimate) -> AbstractContextManager[object]:
        """The context in which a step changes the parameters: it records the estimate first.

        If the context is left by an exception, the step was not taken.
        """
        ...
