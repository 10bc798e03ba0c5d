"""Evaluates a loss at the members of a module: several of them in one pass, or one after another."""

from __future__ import annotations

import logging
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..backends.recurrent.memory import members_bytes
from ..errors import first_line, is_out_of_memory
from ..interrupts import deferred_interrupts
from ..params.space import Place
from .batches import tensors_of
from .forward import Sizes, adapted
from .members import Members, Tensors

_logger = logging.getLogger("zo_kernels")

LossFunction = Callable[[nn.Module, Any], "Tensor | float"]
"""loss_fn(model, batch), which calls the model and returns the loss."""

_CPU_BYTES = 16 << 20
"""Size of the members of a chunk and of their largest result on a CPU. Larger ones leave the caches."""

_CPU_PROBES, _CPU_MOST = 4, 256 << 20
"""On a CPU, so many probes are evaluated at once even if they are larger, up to this size: fewer have more calls."""

_GPU_RESULTS = 4
"""How many results of the largest size a forward pass holds at once, for the memory of a GPU."""


class MembersLoss:
    """A loss of a module, as a function of a batch and of many probes. See `ModulePopulation`."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction, probes_at_once: int | None) -> None:
        self._scored = _Scored(model, loss_fn)
        self._members = Members(self._scored)
        self._given = probes_at_once
        self._at_once: dict[object, int] = {}  # of the shapes of the last batch
        self._is_batched = True

    @torch.no_grad()
    def __call__(self, batch: Any, seeds: Tensor, eps: float) -> Tensor:
        """Losses float64 [n, 2] of one batch. See `ModuleLosses.population_loss`."""
        places = self._members.places()
        shapes = tuple(x.shape for x in tensors_of(batch))
        losses = [torch.zeros(0, 2, dtype=torch.float64)]
        first = 0
        while first < len(seeds):
            at_once = self._given or self._at_once.get(shapes, 1) if self._is_batched else 1
            some = seeds[first : first + at_once]
            try:
                losses.append(self._chunk(places, batch, some, eps, shapes))
            except Exception as error:
                if not is_out_of_memory(error) or len(some) == 1 or self._given:
                    raise
                self._at_once[shapes] = len(some) // 2
                continue
            first += len(some)
        return torch.cat([loss.cpu() for loss in losses])

    def _chunk(self, places: Mapping[Tensor, Place], batch: Any, seeds: Tensor, eps: float, shapes: object) -> Tensor:
        members = self._members.make(places, seeds, eps)
        with deferred_interrupts():  # until the module has its own parameters again
            if self._is_batched:
                try:
                    return self._batched(places, members, batch, shapes)
                except Exception as error:
                    if is_out_of_memory(error):
                        raise
                    _refuse_randomness(error)
                    losses = self._one_by_one(members, batch)  # which raises what is wrong with the module itself
                    self._is_batched = False
                    _logger.warning(
                        "torch.vmap can't take this module, so its losses are evaluated one after another: %s",
                        first_line(error),
                    )
                    return losses
            return self._one_by_one(members, batch)

    def _batched(self, places: Mapping[Tensor, Place], members: Tensors, batch: Any, shapes: object) -> Tensor:
        count = len(next(iter(members.values())))
        replaced = {**members, **self._members.statistics(count)}
        call = torch.vmap(lambda tensors: self._loss(tensors, batch), randomness="error")
        sizes = None if self._given or shapes in self._at_once else Sizes()
        with adapted(sizes):
            losses: Tensor = call(replaced)
        if sizes is not None:
            self._at_once = {shapes: self._probes_at_once(list(places), sizes.largest / count)}
        return losses.double().view(-1, 2)

    def _one_by_one(self, members: Tensors, batch: Any) -> Tensor:
        statistics = self._members.statistics(len(next(iter(members.values()))))
        losses, before = [], _random_state()
        for parts in zip(*({**members, **statistics}).values(), strict=True):
            tensors = dict(zip([*members, *statistics], parts, strict=True))
            losses.append(self._loss(tensors, batch).double())
        if not torch.equal(before, _random_state()):
            raise ValueError(_RANDOM)
        return torch.stack(losses).view(-1, 2)

    def _loss(self, tensors: Tensors, batch: Any) -> Tensor:
        """The loss with these parameters and buffers. Buffers that the pass replaces are put back with the others."""
        replaced = {**dict(self._scored.named_buffers()), **tensors}
        loss: Tensor = functional_call(self._scored, replaced, (batch,))
        return loss

    def _probes_at_once(self, parameters: list[Tensor], result_bytes: float) -> int:
        size = 2 * sum(p.numel() * p.element_size() for p in parameters)
        if parameters[0].device.type == "cuda":
            return max(1, int(members_bytes(parameters, 0) / (size + 2 * _GPU_RESULTS * result_bytes)))
        size += 2 * int(result_bytes)
        return max(1, _CPU_BYTES // size, min(_CPU_PROBES, _CPU_MOST // size))


class _Scored(nn.Module):
    """A model and its loss as one module, whose parameters can be replaced for a call."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self, batch: Any) -> Tensor:
        loss = self.loss_fn(self.model, batch)
        if isinstance(loss, numbers.Real) and not isinstance(loss, bool):
            return torch.tensor(float(loss), dtype=torch.float64)
        if not isinstance(loss, Tensor) or loss.is_complex() or loss.dtype == torch.bool:
            kind = f"tensor of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss_fn must return the loss, a real tensor of one element, not a {kind}")
        if loss.numel() != 1:
            raise ValueError(f"loss_fn must return one loss, not a tensor of shape {tuple(loss.shape)}")
        return loss.detach().reshape(())


_RANDOM = (
    "the module draws random numbers in its forward pass, as dropout does in training mode, so its losses can't be "
    "compared: call model.eval()"
)


def _refuse_randomness(error: Exception) -> None:
    if "randomness" in str(error):
        raise ValueError(_RANDOM) from error


def _random_state() -> Tensor:
    return torch.get_rng_state()
