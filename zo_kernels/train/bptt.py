"""Back-propagation through time, the baseline for zero-order training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import DivergenceError
from ..interrupts import deferred_interrupts
from ..models.language import LanguageModel, States
from ..ops.checks import IGNORE_INDEX
from ..transforms.agreement import agree

OPTIMIZERS = ("sgd", "adamw")


class BPTT:
    """Trains a language model along its gradient, with SGD or AdamW of torch.

    model: the model whose trainable parameters are trained.
    optimizer: "sgd" or "adamw".
    lr, weight_decay: as in torch. AdamW's decay is decoupled, SGD's is added to the gradient.
    momentum: momentum of SGD, in [0, 1).
    micro_batch_size: sequences evaluated at once. None evaluates the whole batch at once. Losses and gradients are
        those of the whole batch.
    checkpoint_length: tokens per piece of gradient checkpointing. The forward pass keeps only the states between
        pieces, and the backward pass computes each piece again. Memory then grows with T / checkpoint_length +
        checkpoint_length instead of T, at the cost of one more forward pass. None turns checkpointing off.
    segment_length: tokens per segment of truncated back-propagation. Each segment starts from the states at the end of
        the one before, but no gradient flows back into it. The gradient of the batch is the sum over its segments, and
        there is one update per batch. The loss is that of the whole context up to rounding. Memory grows with
        segment_length instead of T; with a smaller checkpoint_length, which then divides each segment, it is smaller
        still. None lets gradients flow through the whole context.
    max_cosine_distance: filters the gradients of micro-batches by agreement. In order, each gradient is added to the
        sum of those kept, unless its cosine distance to the sum, in [0, 2], is larger than this. If no gradient agrees
        with the first, the step does not change the parameters. 2 keeps all. The filter holds one gradient per
        micro-batch in memory. None turns it off.

    The attribute `optimizer` is torch's optimizer, for schedulers. Raises ValueError for values out of range.

    Sources: gradient checkpointing, Chen et al., arXiv 1604.06174; gradient agreement filtering, Chaubard, Eyre and
    Kochenderfer, arXiv 2412.18052.
    """

    optimizer: torch.optim.Optimizer
    kept: int
    """Micro-batches whose gradients made the last step: those that score anything, less those filtered out."""

    def __init__(
        self,
        model: LanguageModel,
        optimizer: str = "sgd",
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        micro_batch_size: int | None = None,
        checkpoint_length: int | None = None,
        segment_length: int | None = None,
        max_cosine_distance: float | None = None,
    ) -> None:
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {optimizer!r}: choose one of {', '.join(OPTIMIZERS)}")
        if not (math.isfinite(lr) and lr > 0):
            raise ValueError(f"lr must be positive and finite, not {lr}")
        if not (math.isfinite(weight_decay) and weight_decay >= 0):
            raise ValueError(f"weight_decay must be finite and at least 0, not {weight_decay}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), not {momentum}")
        if momentum and optimizer != "sgd":
            raise ValueError(f"momentum is sgd's: {optimizer} has its own, set momentum to 0")
        for name, value in (
            ("micro_batch_size", micro_batch_size),
            ("checkpoint_length", checkpoint_length),
            ("segment_length", segment_length),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if max_cosine_distance is not None and not 0 <= max_cosine_distance <= 2:
            raise ValueError(f"max_cosine_distance must be in [0, 2], not {max_cosine_distance}")
        self.model = model
        self.name = optimizer
        self.micro_batch_size = micro_batch_size
        self.checkpoint_length = checkpoint_length
        self.segment_length = segment_length
        self.max_cosine_distance = max_cosine_distance
        self.kept = self._agreeing = 0
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        if not self._parameters:
            raise ValueError("the model has no trainable parameter")
        self.optimizer = make_optimizer(
            optimizer, self._parameters, lr=lr, weight_decay=weight_decay, momentum=momentum
        )

    def step(self, tokens_BT: Tensor, targets_BT: Tensor, states: States | None = None) -> float:
        """One update: `backward`, then `update`. Returns the loss before it, and raises, as `backward` does."""
        loss = self.backward(tokens_BT, targets_BT, states)
        self.update()
        return loss

    def backward(self, tokens_BT: Tensor, targets_BT: Tensor, states: States | None = None) -> float:
        """Computes the gradients of the next update. Returns the mean loss of the batch in nats per scored position.

        tokens_BT, targets_BT: as for the model's `loss`; on the model's device.
        states: states that the sequences start from, as constants; None starts from the model's `initial_states`.

        Raises ValueError as the model's `loss` does, if no position is scored, and if there are no two micro-batches to
        agree; DivergenceError if the loss or its gradient is NaN or infinite. Whatever is raised, there are then no
        gradients. The parameters stay what they are.
        """
        self.model.check_batch(tokens_BT, targets_BT)
        size = self.micro_batch_size or len(tokens_BT)
        parts = tokens_BT.split(size)
        starts = self.model.split_states(states, [len(part) for part in parts])
        micro_batches = [
            (tokens, targets, start, count)
            for tokens, targets, start in zip(parts, targets_BT.split(size), starts, strict=True)
            if (count := int((targets != IGNORE_INDEX).sum())) > 0
        ]
        total = sum(count for *_, count in micro_batches)
        if total == 0:
            raise ValueError("no position of the batch is scored: all targets are -100")
        if self.max_cosine_distance is not None and len(micro_batches) < 2:
            raise ValueError(
                "max_cosine_distance compares micro-batches, but there is one only: lower micro_batch_size"
            )
        try:
            loss, gradients = 0.0, []
            self.optimizer.zero_grad()
            for tokens, targets, start, count in micro_batches:
                loss += self._add_gradient(tokens, targets, start, count, total)
                if self.max_cosine_distance is not None:
                    gradients.append(self._take_gradient())
            checked = gradients or [p.grad for p in self._parameters if p.grad is not None]
            if not (math.isfinite(loss) and all(gradient.isfinite().all() for gradient in checked)):
                raise DivergenceError(f"the loss is {loss} or its gradient is not finite: lower lr, or check the batch")
            self._agreeing = len(micro_batches)
            if gradients:
                self._agreeing = self._keep_agreeing(gradients, [count / total for *_, count in micro_batches])
        except BaseException:
            self.optimizer.zero_grad()
            raise
        return loss

    def update(self) -> None:
        """Steps along the gradients that `backward` has computed. A Ctrl-C waits until the update is done."""
        with deferred_interrupts():
            self.optimizer.step()  # passes over parameters without a gradient
            self.kept = self._agreeing
            self.optimizer.zero_grad()  # frees them: the next step's losses need the memory

    def state_dict(self) -> dict[str, Any]:
        """torch's state of the optimizer, and its name: saved with the model's, the run continues bit for bit."""
        return {"bptt": self.name, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a `state_dict`. Raises ValueError, changing nothing, if it is of something else."""
        name = state_dict.get("bptt")
        if name != self.name:
            of = "no BPTT" if name is None else f"BPTT with {name}"
            raise ValueError(f"this state is of {of}, but BPTT with {self.name} is to continue from it")
        self.optimizer.load_state_dict(state_dict["optimizer"])

    def _add_gradient(
        self, tokens_BT: Tensor, targets_BT: Tensor, states: States | None, count: int, total: int
    ) -> float:
        """Adds the gradient of a micro-batch to the gradients so far, and returns its share of the loss.

        count: number of its scored positions. total: that of the whole batch.
        """
        length = self.segment_length or tokens_BT.shape[1]
        if states is None and length >= tokens_BT.shape[1]:
            part = self._loss(tokens_BT, targets_BT, count) * (count / total)
            part.backward()
            return part.item()
        loss, states = 0.0, states or self.model.initial_states(len(tokens_BT))
        for tokens, targets in zip(tokens_BT.split(length, 1), targets_BT.split(length, 1), strict=True):
            nats, states = self._nats(tokens, targets, states)
            part = nats / total
            part.backward()
            loss += part.item()
            states = tuple(state.detach() for state in states)
        return loss

    def _loss(self, tokens_BT: Tensor, targets_BT: Tensor, count: int) -> Tensor:
        """Mean over the `count` scored positions, float64."""
        if (self.checkpoint_length or tokens_BT.shape[1]) >= tokens_BT.shape[1]:
            return self.model.loss(tokens_BT, targets_BT)
        return self._nats(tokens_BT, targets_BT, self.model.initial_states(len(tokens_BT)))[0] / count

    def _nats(self, tokens_BT: Tensor, targets_BT: Tensor, states: States) -> tuple[Tensor, States]:
        """Sum over the scored positions, float64, and the states at the end; checkpointed if it is long enough."""
        length = self.checkpoint_length or tokens_BT.shape[1]
        if length >= tokens_BT.shape[1]:
            return self.model.segment_nats(tokens_BT, targets_BT, states)
        parts = []
        for tokens, targets in zip(tokens_BT.split(length, 1), targets_BT.split(length, 1), strict=True):
            nats, states = checkpoint(self.model.segment_nats, tokens, targets, states, use_reentrant=False)
            parts.append(nats)
        return torch.stack(parts).sum(), states

    def _take_gradient(self) -> Tensor:
        """The gradient so far, flattened [d]; the next one starts from 0."""
        gradient = torch.cat([_gradient(p).flatten() for p in self._parameters])
        self.optimizer.zero_grad()
        return gradient

    def _keep_agreeing(self, gradients: list[Tensor], weights: list[float]) -> int:
        """Sets the parameters' gradients to the weighted mean of those that agree, and returns how many do.

        gradients: of m micro-batches, each [d] and times its weight. If only one is kept, no gradient is set.
        """
        assert self.max_cosine_distance is not None
        means_md = torch.stack([gradient / weight for gradient, weight in zip(gradients, weights, strict=True)])
        kept = agree(means_md, self.max_cosine_distance)[1].nonzero().flatten().tolist()
        if len(kept) > 1:
            mean_d = torch.stack([gradients[i] for i in kept]).sum(0) / sum(weights[i] for i in kept)
            for p, gradient in zip(self._parameters, mean_d.split([p.numel() for p in self._parameters]), strict=True):
                p.grad = gradient.view_as(p)
        return len(kept)


def make_optimizer(
    name: str, parameters: Sequence[Tensor], *, lr: float, weight_decay: float, momentum: float = 0.0
) -> torch.optim.Optimizer:
    """Returns torch's optimizer of this name in `OPTIMIZERS`."""
    if name == "sgd":
        return torch.optim.SGD(parameters, lr, momentum=momentum, weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
