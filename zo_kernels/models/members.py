"""Language models in torch whose forward is written once, for many members: a member is a set of parameters.

A population has two members a probe, the model itself is a population of one. Parameters then have a leading dimension
M, and a product of a layer is a batched product.

Shape suffixes: M members, B batch, T time, V vocabulary, E embedding, K size of the output's input.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from ..backends.base import PRECISIONS
from ..backends.recurrent.loss import logits, nats
from ..backends.recurrent.memory import members_bytes
from ..ops import apply_probes
from ..ops.checks import IGNORE_INDEX, check_scalar, check_targets_form, check_tokens, check_tokens_form
from ..params.arena import flat_offsets
from .language import LanguageModel, States

Weights = Mapping[str, Tensor]
"""The parameters of M members by name, each [M, ...]."""

_CPU_BYTES = 12 << 20
"""Of the members and states of a chunk on a CPU: they are read at every time step, so they must stay in its caches."""

_OUTPUT_BYTES = 64 << 20
"""Of the outputs that wait for their projection to the vocabulary."""

_STATE_COPIES = 4
"""Of the states, what a step holds at once."""


class MembersLM(LanguageModel):
    """A language model that is a step function of weights and states: embedding, step, projection to the vocabulary.

    It is computed in float32 (float64 if the parameters are), and its states are of that dtype. A subclass has the
    parameters `embedding` [V, E], `output_weight` [V, K] and `output_bias` [V] beside its own, and says what `_start`
    and `_step` compute, without writing what they are given: autograd may need it.
    """

    precisions = ("float32",)

    output_bias: Tensor

    @property
    @abstractmethod
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each state of one sequence, by name."""

    @abstractmethod
    def _start(self, weights: Weights, states: Sequence[Tensor]) -> list[Tensor]:
        """The states [M, B, ...] of a segment's start, and behind them what else `_step` hands on."""

    @abstractmethod
    def _step(self, weights: Weights, x_MBE: Tensor, running: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What is projected to the vocabulary after a token's embedding [M, B, K], and `running` after it."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """Those of `state_shapes`."""
        return tuple(self.state_shapes)

    def initial_states(self, batch_size: int) -> States:
        """The zero states that a sequence starts from, each [B, ...] as `state_shapes` has it."""
        return tuple(
            self.output_weight.new_zeros((batch_size, *shape), dtype=self.wide_dtype)
            for shape in self.state_shapes.values()
        )

    def forward(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, T, V] of the token after each token, in the parameters' dtype, and the states after the last.

        See `LanguageModel.forward`; each state is [B, ...], float32 (float64 if the parameters are).
        """
        weights, output_TBMK, states = self._outputs(tokens_BT, states)
        scores = F.linear(output_TBMK[:, :, 0], weights["output_weight"][0], weights["output_bias"][0])
        return scores.transpose(0, 1).to(self.output_weight.dtype), states

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """See `LanguageModel.loss`. The mean is taken in float64, and logits exist a tile at a time only."""
        check_targets_form(tokens_BT, targets_BT)
        if self.device.type == "cpu":
            self.check_batch(tokens_BT, targets_BT)
        weights, output_TBMK, _ = self._outputs(tokens_BT, None)
        total = nats(output_TBMK, weights["output_weight"], weights["output_bias"], targets_BT.t())[0]
        return total / (targets_BT != IGNORE_INDEX).sum()

    @torch.no_grad()
    def next_logits(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """See `LanguageModel.next_logits`."""
        weights, before = self._weights(), self._before(tokens_BT, states)
        latest: list[Tensor] = []

        def keep(output_MBK: Tensor) -> None:
            latest[:] = [output_MBK]

        after = self._run(weights, _embedded(weights, tokens_BT), before, keep)
        scores_MBV = logits(latest[0], weights["output_weight"], weights["output_bias"])
        return scores_MBV[0], tuple(state[0] for state in after)

    @torch.no_grad()
    def population_nats(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        seeds: Tensor,
        eps: float,
        *,
        states: Sequence[Tensor] = (),
        precision: str = "float32",
    ) -> Tensor:
        """As `population_loss`, but the sum over the scored positions: sums of segments and micro-batches add up.

        Perturbed copies of a chunk of probes exist at a time, as many as the caches of a CPU or the memory of a GPU
        hold. Arithmetic is float32 (float64 for float64 parameters), sums over positions float64.

        precision: "float32" alone.
        """
        self._check_population(tokens_BT, targets_BT, seeds, eps, states, precision)
        tokens_BT, targets_BT = tokens_BT.to(self.device), targets_BT.to(self.device)
        offsets, chunk = flat_offsets(self), self.probes_at_once(len(tokens_BT))
        parts = [torch.zeros(0, 2, dtype=torch.float64)]
        with _one_thread() if self.device.type == "cpu" and chunk > 1 else nullcontext():
            for first in range(0, len(seeds), chunk):
                probes = slice(first, first + chunk)
                weights = self._perturbed(offsets, seeds[probes], eps)
                parts.append(self._chunk_nats(weights, tokens_BT, targets_BT, [state[probes] for state in states]))
        return torch.cat(parts)

    def probes_at_once(self, batch_size: int) -> int:
        """Probes whose members and states fit the caches of a CPU, or the memory of a GPU; at least one."""
        parameters = list(self.parameters())
        numbers = sum(p.numel() for p in parameters)
        numbers += _STATE_COPIES * batch_size * sum(torch.Size(shape).numel() for shape in self.state_shapes.values())
        available = members_bytes(parameters, _CPU_BYTES)
        return max(1, available // (2 * self.wide_dtype.itemsize * numbers))

    def _perturbed(self, offsets: Mapping[Tensor, int], seeds: Tensor, eps: float) -> Weights:
        """The parameters at theta + eps * p and theta - eps * p: [2n, ...]."""
        weights = {}
        for name, p in self.named_parameters():
            x = p.detach()
            if p in offsets:
                both = apply_probes(x, eps, seeds, offset=offsets[p], dtype=self.wide_dtype)
                weights[name] = both.flatten(0, 1)
            else:
                weights[name] = x.to(self.wide_dtype).expand(2 * len(seeds), *x.shape)
        return weights

    def _chunk_nats(self, weights: Weights, tokens_BT: Tensor, targets_BT: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Sums of nats [n, 2] of one chunk, on the CPU; states [n, 2, B, ...], if any, are carried on."""
        output_weight, output_bias = weights["output_weight"], weights["output_bias"]
        members, num_steps = len(output_bias), tokens_BT.shape[1]
        before = [state.flatten(0, 1) for state in states]
        if not states:
            before = [s.expand(members, *s.shape).contiguous() for s in self.initial_states(len(tokens_BT))]
        total = torch.zeros(members, dtype=torch.float64, device=output_bias.device)
        waiting: list[Tensor] = []
        done = 0

        def project(output_MBK: Tensor) -> None:
            nonlocal total, done
            waiting.append(output_MBK)
            size = len(waiting) * output_MBK.numel() * output_MBK.element_size()
            if size >= _OUTPUT_BYTES or done + len(waiting) == num_steps:
                targets_TB = targets_BT[:, done : done + len(waiting)].t()
                total += nats(torch.stack(waiting).transpose(1, 2), output_weight, output_bias, targets_TB)
                done += len(waiting)
                waiting.clear()

        after = self._run(weights, _embedded(weights, tokens_BT), before, project)
        for state, last in zip(states, after, strict=False):
            state.copy_(last.view_as(state))
        return total.view(-1, 2).cpu()

    def _outputs(self, tokens_BT: Tensor, states: States | None) -> tuple[Weights, Tensor, States]:
        """The model's own weights, its outputs [T, B, 1, K] after every token, and the states after the last."""
        weights, before = self._weights(), self._before(tokens_BT, states)
        x_TMBE = F.embedding(tokens_BT.t(), weights["embedding"][0])[:, None]
        outputs: list[Tensor] = []
        after = self._run(weights, x_TMBE.unbind(), before, outputs.append)
        return weights, torch.stack(outputs).transpose(1, 2), tuple(state[0] for state in after)

    def _weights(self) -> Weights:
        """The model as one member."""
        return {name: p.to(self.wide_dtype)[None] for name, p in self.named_parameters()}

    def _run(
        self, weights: Weights, xs: Iterable[Tensor], before: Sequence[Tensor], consume: Callable[[Tensor], None]
    ) -> States:
        """Steps over embeddings [M, B, E]; `consume` gets each output. The states after the last."""
        running = self._start(weights, before)
        for x_MBE in xs:
            output_MBK, running = self._step(weights, x_MBE, running)
            consume(output_MBK)
        return tuple(running[: len(before)])

    def _before(self, tokens_BT: Tensor, states: States | None) -> list[Tensor]:
        """The states [1, B, ...] that a call of the model itself starts from; refuses what does not fit."""
        check_tokens_form(tokens_BT)
        if self.device.type == "cpu":
            check_tokens(tokens_BT, self.vocab_size)
        if states is None:
            states = self.initial_states(len(tokens_BT))
        self._check_states(states, (len(tokens_BT),), None)
        return [state.to(self.wide_dtype)[None] for state in states]

    def _check_population(
        self,
        tokens_BT: Tensor,
        targets_BT: Tensor,
        seeds: Tensor,
        eps: float,
        states: Sequence[Tensor],
        precision: str,
    ) -> None:
        self.check_batch(tokens_BT, targets_BT)
        if seeds.dtype != torch.int64 or seeds.dim() != 1 or seeds.device.type != "cpu":
            raise TypeError(
                f"seeds must be an int64 CPU tensor of one dimension, not {seeds.dtype} {list(seeds.shape)}"
            )
        check_scalar(eps, "eps", self.wide_dtype)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        if precision not in self.precisions:
            raise ValueError(f"the model {self.name} has no {precision} products: use precision='float32'")
        if states:
            self._check_states(states, (len(seeds), 2, len(tokens_BT)), self.wide_dtype)

    def _check_states(self, states: Sequence[Tensor], leading: tuple[int, ...], dtype: torch.dtype | None) -> None:
        """dtype: theirs, None for any."""
        shapes = self.state_shapes
        if len(states) != len(shapes):
            raise ValueError(f"the model {self.name} has {len(shapes)} states, but {len(states)} were given")
        for (name, shape), state in zip(shapes.items(), states, strict=True):
            expected = [*leading, *shape]
            if list(state.shape) != expected or state.device != self.device or dtype not in (None, state.dtype):
                raise ValueError(
                    f"state {name} must be {dtype or 'a tensor'} of shape {expected} on {self.device}, "
                    f"not {state.dtype} of shape {list(state.shape)} on {state.device}"
                )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within it torch has one thread: products that fit the caches are too small to share.

    Two threads take three quarters of the time of one at best, and many times as long where other processes hold a
    core: a time step is some forty calls.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _embedded(weights: Weights, tokens_BT: Tensor) -> Iterable[Tensor]:
    """The embeddings [M, B, E] of one token after the other."""
    return (weights["embedding"][:, tokens_B] for tokens_B in tokens_BT.unbind(1))
