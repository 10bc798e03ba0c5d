"""The gradient of a recurrent language model on one batch, by activity perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from ..backends.base import WEIGHT_NAMES
from ..ops import recurrent_activity
from ..ops.checks import IGNORE_INDEX
from .language import States

if TYPE_CHECKING:
    from .base import RecurrentLM


class ActivityBatch:
    """A batch on which the gradient is estimated by activity perturbation, for `zo_kernels.optim.ActivityPerturbation`.

    Use `model.activity(tokens, targets)` to build it. The batch is read in micro-batches, whose gradients add up.
    """

    def __init__(
        self,
        model: RecurrentLM,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        credit_length: int | None,
        local_gradient: bool,
        micro_batch_size: int | None,
        states: States | None,
    ) -> None:
        if model.num_layers > 1 or model.layer_norm:
            raise ValueError("activity perturbation is for a single layer without layer norm: use ZeroOrder or BPTT")
        for name, size in (("micro_batch_size", micro_batch_size), ("credit_length", credit_length)):
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ValueError(f"{name} must be a positive integer, not {size!r}")
        model.check_batch(tokens_BT, targets_BT)
        self.scored = int((targets_BT != IGNORE_INDEX).sum())
        if self.scored == 0:
            raise ValueError(f"there is nothing to learn from this batch: every target is {IGNORE_INDEX}")
        self.parameters: list[nn.Parameter] = [getattr(model, name) for name in WEIGHT_NAMES[:6]]
        self._weights = model._weights(perturbed=False)
        both = (x.to(model.device).split(micro_batch_size or len(x)) for x in (tokens_BT, targets_BT))
        self._batches = list(zip(*both, strict=True))
        starts = model.split_states(states, [len(tokens) for tokens, _ in self._batches])
        dtype = model.wide_dtype
        self._starts = [tuple(state.detach().to(dtype).contiguous() for state in start or ()) for start in starts]
        self._credit_length, self._local_gradient = credit_length, local_gradient

    @property
    def parts(self) -> int:
        """Number of micro-batches."""
        return len(self._batches)

    def part_gradient(self, part: int, seeds: Tensor, eps: float) -> tuple[float, tuple[Tensor, ...]]:
        """The sum of nats of one micro-batch without perturbation, and an estimate of its gradient.

        The gradient has a tensor for each of `parameters`, float32 (float64 for float64 parameters). seeds and eps are
        as for `zo_kernels.ops.recurrent_activity`, whose errors it raises.
        """
        tokens, targets = self._batches[part]
        clean, _, gradients = recurrent_activity(
            self._weights,
            tokens,
            targets,
            seeds,
            eps,
            self._starts[part],
            credit_length=self._credit_length,
            local_gradient=self._local_gradient,
            first_sequence=sum(len(before) for before, _ in self._batches[:part]),
        )
        return float(clean), gradients
