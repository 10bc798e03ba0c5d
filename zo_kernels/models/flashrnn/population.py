"""Computes the losses of a population, in chunks of probes and, for long contexts, in segments."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...backends.base import RecurrentWeights
from ...backends.recurrent.loss import nats
from ...backends.recurrent.memory import population_bytes
from ...backends.tf32 import warn_of_tf32
from . import graph
from .call import Recurrence
from .checks import check_population
from .choice import FlashBackend
from .members import Members, PerturbedMembers, wide_dtype
from .plan import Plan, Work, make_plan, split_batch
from .project import InputProjection, project_outputs

_logger = logging.getLogger("zo_kernels")

_GRAPHS = 4
"""Number of recorded chunks to keep, the latest ones. Each has its own memory."""


def walk(
    recurrence: Recurrence,
    members: Members,
    tokens_BT: Tensor,
    states: Sequence[Tensor],
    dtype: torch.dtype,
    steps: int,
    consume: Callable[[slice, Tensor], None],
) -> list[Tensor]:
    """Runs the members over the tokens, at most `steps` at a time, and returns the states after the last token.

    states: of each layer, [S, B, MN, D] of `dtype`, in which the recurrence is computed. consume: called for each
    segment with the outputs of its last layer [T, B, M, H], which are freed afterwards.
    """
    # In bfloat16 the biases are added to the projections before rounding: rounding b alone would lose its perturbation.
    layers = [members.layer(number) for number in range(members.num_layers)]
    with_bias = dtype != layers[0].bias.dtype
    project = InputProjection(members, tokens_BT.numel(), dtype, with_bias=with_bias)
    biases = [layer.recurrent_bias().to(dtype) if with_bias else layer.bias for layer in layers]
    current = list(states)
    for start in range(0, tokens_BT.shape[1], steps):
        segment = slice(start, min(start + steps, tokens_BT.shape[1]))
        outputs_TBMH: Tensor | None = None
        for number, layer in enumerate(layers):
            if outputs_TBMH is None:
                wx = project(tokens_BT[:, segment].t())
            else:
                wx = project_outputs(layer, outputs_TBMH, with_bias=with_bias)
            hidden, current[number] = recurrence(wx, current[number], layer.recurrent_weight, biases[number])
            hidden_TBMH = hidden.reshape(*hidden.shape[:2], len(members.embedding), -1)
            outputs_TBMH = members.outputs(number, hidden_TBMH, outputs_TBMH)
            del wx, hidden, hidden_TBMH  # free them before the next layer; hidden is a view of all states
        assert outputs_TBMH is not None
        consume(segment, outputs_TBMH)
        del outputs_TBMH
    return current


class Chunk:
    """The buffers and the computation for n probes on a batch of a given shape.

    `load` and writing `seeds` set the inputs. `compute` reads nothing else, and does not wait for the device.
    """

    def __init__(
        self, recurrence: Recurrence, weights: RecurrentWeights, plan: Plan, tokens_BT: Tensor, dtype: torch.dtype
    ) -> None:
        device = weights.bias.device
        self._recurrence = recurrence
        self._plan = plan
        self._dtype = dtype
        self._perturbed = PerturbedMembers(weights, plan.probes, dtype == torch.bfloat16)
        self._tokens_BT = torch.empty(tokens_BT.shape, dtype=torch.int64, device=device)
        self._targets_BT = torch.empty_like(self._tokens_BT)
        self._eps = torch.empty(1, dtype=torch.float64, device=device)
        self.seeds = torch.empty(plan.probes, dtype=torch.int64, device=device)
        self.record: Callable[[Callable[[], Tensor]], Callable[[], Tensor]] | None = None
        """Function that records `compute` as a CUDA graph, or None not to record it."""
        self._replay: Callable[[], Tensor] | None = None

    def load(self, tokens_BT: Tensor, targets_BT: Tensor, eps: float) -> None:
        """Copies the batch and eps to the buffers."""
        self._tokens_BT.copy_(tokens_BT)
        self._targets_BT.copy_(targets_BT)
        self._eps.fill_(eps)

    def compute(self, states: Sequence[Tensor] = ()) -> Tensor:
        """Nats, float64 [n, 2]. states: each [n, 2, N, B, D], overwritten; without states starts from zeros."""
        self._perturbed.write(self._eps, self.seeds)
        members = self._perturbed.members
        total = torch.zeros(len(members.embedding), dtype=torch.float64, device=self._eps.device)

        def add(segment: slice, hidden_TBMH: Tensor) -> None:
            targets_TB = self._targets_BT[:, segment].t()
            total.add_(nats(hidden_TBMH, members.output_weight, members.output_bias, targets_TB))

        before = self._heads_of(states, members)
        last = walk(self._recurrence, members, self._tokens_BT, before, self._dtype, self._plan.steps, add)
        for index, state in enumerate(states):
            for part, heads in zip(state.chunk(members.num_layers, 2), last, strict=True):
                part.copy_(heads[index].transpose(0, 1).unflatten(0, part.shape[:3]))
        return total.view(-1, 2)

    def compute_and_carry(self, states: Sequence[Tensor]) -> Tensor:
        """Like `compute`, with a CUDA graph if one is to be recorded. states may have fewer than n probes."""
        if not states:
            if self.record is not None and self._replay is None:
                self._replay = self.record(self.compute)
            return (self._replay or self.compute)().clone()
        missing = len(self.seeds) - len(states[0])
        if missing == 0:
            return self.compute(states)
        full = [torch.cat([state, state[-1:].expand(missing, *state.shape[1:])]) for state in states]
        result = self.compute(full)
        for state, carried in zip(states, full, strict=True):
            state.copy_(carried[: len(state)])
        return result

    def _heads_of(self, states: Sequence[Tensor], members: Members) -> list[Tensor]:
        """Population states of each layer in flashrnn's layout, [S, B, MN, D]."""
        if not states:
            count, (_, heads, _, head_dim) = self._recurrence.num_states, members.all.bias.shape
            shape = (count, len(self._tokens_BT), len(members.embedding) * heads, head_dim)
            return [torch.zeros(shape, dtype=self._dtype, device=self._eps.device) for _ in range(members.num_layers)]
        layers = zip(*(state.chunk(members.num_layers, 2) for state in states), strict=True)
        return [torch.stack([x.flatten(0, 2).transpose(0, 1) for x in layer]).to(self._dtype) for layer in layers]


class PopulationForward:
    """The population forward of one model. It keeps compiled chunk sizes and CUDA graphs between calls.

    cuda_graph: True records chunks, or raises if it can't. False never records. None records if it can and it pays.
    """

    def __init__(self, recurrence: Recurrence, cuda_graph: bool | None) -> None:
        self._recurrence = recurrence
        self._cuda_graph = cuda_graph
        self._compiled: set[int] = set()
        self._recorded: dict[Any, Chunk] = {}
        self._logged: set[str] = set()

    @torch.no_grad()
    def nats(
        self,
        weights: RecurrentWeights,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        seeds: Tensor,
        eps: float,
        states: Sequence[Tensor],
        precision: str,
    ) -> Tensor:
        """See `zo_kernels.models.FlashLM.population_nats`."""
        check_population(weights, tokens_BT, targets_BT, seeds, eps, states, precision)
        if len(seeds) == 0:
            return torch.zeros(0, 2, dtype=torch.float64)
        heads, _, head_dim = weights.bias.shape
        parts = split_batch(weights.cell, len(tokens_BT), 2 * heads, head_dim)
        if len(parts) == 1:
            return self._nats(weights, (tokens_BT, targets_BT), seeds, eps, states, precision)
        total = torch.zeros(len(seeds), 2, dtype=torch.float64)
        for rows in parts:
            some = [state[:, :, :, rows].contiguous() for state in states]
            total += self._nats(weights, (tokens_BT[rows], targets_BT[rows]), seeds, eps, some, precision)
            for state, after in zip(states, some, strict=True):
                state[:, :, :, rows] = after
        return total

    def _nats(
        self,
        weights: RecurrentWeights,
        batch: tuple[Tensor, Tensor],
        seeds: Tensor,
        eps: float,
        states: Sequence[Tensor],
        precision: str,
    ) -> Tensor:
        """As `nats`, for a batch of which flashrnn takes a step of one probe."""
        with torch.cuda.device_of(weights.bias):
            chunk = self._chunk(weights, batch[0], len(seeds), bool(states), precision)
            chunk.load(*batch, eps)
            size = len(chunk.seeds)
            filled_up = torch.cat([seeds, seeds[-1:].expand(-len(seeds) % size)]).to(weights.bias.device)
            parts = []
            for start in range(0, len(seeds), size):
                chunk.seeds.copy_(filled_up[start : start + size])
                parts.append(chunk.compute_and_carry([state[start : start + size] for state in states]))
            return torch.cat(parts)[: len(seeds)].cpu()

    def _chunk(self, weights: RecurrentWeights, tokens_BT: Tensor, probes: int, carried: bool, precision: str) -> Chunk:
        device, wide = weights.bias.device, wide_dtype(weights.bias.dtype)
        dtype = torch.bfloat16 if precision == "bfloat16" and wide == torch.float32 else wide
        addresses = tuple(x.data_ptr() for x in weights.tensors)
        key = (tokens_BT.shape, probes, dtype, addresses, weights.offsets, device)
        if key in self._recorded:
            return self._recorded[key]
        if device.type == "cuda":
            warn_of_tf32()
        chosen = self._recurrence.backend(device, dtype)
        work = Work.of(weights, tokens_BT.shape[0], tokens_BT.shape[1], dtype)
        plan = make_plan(work, probes, population_bytes(weights), self._compiled if chosen.compiles else ())
        if chosen.compiles:
            self._compiled.add(plan.probes)
        chunk = Chunk(self._recurrence, weights, plan, tokens_BT, dtype)
        if not carried and plan.steps == work.steps and self._records(chosen, weights, plan, len(tokens_BT)):
            chunk.record = graph.record if self._cuda_graph else graph.record_or_compute
            self._recorded[key] = chunk
            if len(self._recorded) > _GRAPHS:
                del self._recorded[next(iter(self._recorded))]
        return chunk

    def _records(self, chosen: FlashBackend, weights: RecurrentWeights, plan: Plan, batch_size: int) -> bool:
        """Whether to record a chunk as a CUDA graph. Raises RuntimeError if cuda_graph is True and it can't be."""
        if self._cuda_graph is False:
            return False
        reason = graph.obstacle(chosen, weights.bias.device)
        if self._cuda_graph:
            if reason is not None:
                raise RuntimeError(f"can't record a CUDA graph: {reason}; use cuda_graph=None")
            return True
        products = sum(x.numel() for name, x in zip(weights.names, weights.tensors, strict=True) if "_weight" in name)
        if not graph.is_small(2 * plan.probes * batch_size * products, plan.steps * weights.num_layers):
            return False
        if reason is not None and weights.bias.device.type == "cuda":
            self._log_once(logging.INFO, f"no CUDA graph: {reason}")
        return reason is None

    def _log_once(self, level: int, message: str) -> None:
        if message not in self._logged:
            self._logged.add(message)
            _logger.log(level, message)
