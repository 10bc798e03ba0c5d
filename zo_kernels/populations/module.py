"""Populations of any torch module: the losses of many perturbed copies in one batched forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .batches import count_rows, split_rows
from .evaluate import LossFunction, MembersLoss


class ModulePopulation:
    """Evaluates a loss of a module at many probes at once.

        population = zo.ModulePopulation(model, lambda model, batch: model(**batch).loss)
        loss = optimizer.step(population.on(batch))

    The losses are those of a closure up to rounding. The perturbed copies of the trained parameters are evaluated
    together under torch.func.vmap, a few probes at a time: their operations become batched ones, and there are as many
    calls of torch as for one copy. Frozen parameters are shared: their products are those of a larger batch, as for
    LoRA. Nothing is written to the module's parameters, but during a pass they are replaced by those of the copies, so
    another thread must not use the module. Ctrl-C waits for the end of a pass.

    model: the module whose parameters the optimizer trains. It may be in training mode, in several dtypes and under
        torch.autocast. The statistics of BatchNorm in training mode are left as they are.
    loss_fn: called as loss_fn(model, batch). It must call the `model` that it is given, and return the loss, a tensor
        of one element. It may use the attributes and methods of the model.
    probes_at_once: number of probes that are evaluated together. None: as many as fit the caches of a CPU or the free
        memory of a GPU, and fewer if memory runs out.

    Each probe that is evaluated at once takes two copies of the trained parameters, in their dtype, and the memory of
    two forward passes. The copies' memory is kept for the next call.

    If torch.vmap can't take the module, as for control flow that depends on the data or for `.item()`, the copies are
    evaluated one after another. A warning on the logger `zo_kernels` says so once, with the reason.

    Raises TypeError if the model is no module or loss_fn can't be called, and ValueError if probes_at_once is not a
    positive integer.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, *, probes_at_once: int | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, not a {type(model).__name__}")
        if not callable(loss_fn):
            raise TypeError(f"loss_fn must be a function of a model and a batch, not a {type(loss_fn).__name__}")
        if probes_at_once is not None:
            _check_positive("probes_at_once", probes_at_once)
        self.model = model
        self._evaluate = MembersLoss(model, loss_fn, probes_at_once)

    def on(
        self, batch: Any, *, micro_batch_size: int | None = None, scored: Callable[[Any], int] | None = None
    ) -> ModuleLosses:
        """The losses on a batch, which an optimizer's `step` takes in place of a closure.

        batch: anything that loss_fn takes.
        micro_batch_size: number of rows of a micro-batch. Processes can share out micro-batches, and memory is that of
            one. All tensors in the batch (which may be a tensor, or tensors in tuples, lists and mappings) are then cut
            along their first dimension; other values are passed to each micro-batch. None: the batch is not cut.
        scored: scored(micro_batch) is the number of elements that its loss is the mean of, such as targets that are not
            padding. None: its number of rows. The loss of the batch is the mean over all of them.

        Raises ValueError if the batch can't be cut, or nothing in it is scored.
        """
        return ModuleLosses(self._evaluate, batch, micro_batch_size, scored)


class ModuleLosses:
    """Losses of a module on one batch; a `zo_kernels.estimators.BatchPopulation`.

    Use `ModulePopulation.on` to build it.
    """

    parts: int
    """Number of micro-batches."""
    scored: int
    """Number of elements that the loss is the mean of. 1 if there is one micro-batch."""

    def __init__(
        self,
        evaluate: MembersLoss,
        batch: Any,
        micro_batch_size: int | None,
        scored: Callable[[Any], int] | None,
    ) -> None:
        self._evaluate = evaluate
        self._batches, self._counts = [batch], [1]
        if micro_batch_size is not None:
            _check_positive("micro_batch_size", micro_batch_size)
            self._batches = split_rows(batch, micro_batch_size)
        if len(self._batches) > 1:
            self._counts = [int((scored or count_rows)(part)) for part in self._batches]
        self.parts, self.scored = len(self._batches), sum(self._counts)
        if self.scored <= 0 or min(self._counts) < 0:
            raise ValueError(f"there is nothing to learn from this batch: its micro-batches score {self._counts}")

    def population_loss(self, seeds: Tensor, eps: float) -> Tensor:
        """Losses float64 [n, 2] at theta + eps * p(seeds[i]) and theta - eps * p(seeds[i]). Does not write theta.

        seeds: int64 [n]. Elements have the numbers of the optimizer that takes the step, or else of the one that was
            built on the parameters. Frozen parameters, and those that it does not have, are not perturbed.

        Raises ValueError if no parameter is trained, if the loss is not one number, and if the module draws random
        numbers, as dropout does in training mode; TypeError if loss_fn returns no loss; and what loss_fn raises.
        """
        total = torch.zeros(len(seeds), 2, dtype=torch.float64)
        for part in range(self.parts):
            total += self.part_nats(part, seeds, eps)
        return total / self.scored

    def part_nats(self, part: int, seeds: Tensor, eps: float) -> Tensor:
        """The loss of one micro-batch times the number of its scored elements: float64 [n, 2]."""
        count = self._counts[part]
        if count == 0:  # the mean of nothing is NaN
            return torch.zeros(len(seeds), 2, dtype=torch.float64)
        return self._evaluate(self._batches[part], seeds, eps) * count


def _check_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, not {value!r}")
