"""Base class of the language models in torch that evaluate many members in one forward.

A member is a perturbed copy of the model; each probe has two. Parameters have a leading dimension M, and each product
of a layer is a batched product. The unperturbed model runs by the same code with M = 1.

Shape suffixes: M members, B batch, T time, V vocabulary, E embedding, K inputs of the output projection.
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
from ..ops.checks import IGNORE_INDEX, check_scalar, check_seeds, check_targets_form, check_tokens, check_tokens_form
from ..params.space import flat_offsets
from .language import LanguageModel, States

Weights = Mapping[str, Tensor]
"""Parameters of M members by name, each [M, ...]."""

_CPU_BYTES = 12 << 20
"""Size of the members and states of a chunk on a CPU. Every time step reads them, so they must stay in the caches."""

_OUTPUT_BYTES = 64 << 20
"""Size of the outputs that are collected before they are projected to the vocabulary."""

_STATE_COPIES = 4
"""Number of copies of the states that a step holds at once."""


class MembersLM(LanguageModel):
    """A language model made of an embedding, a step function, and a projection to the vocabulary.

    It computes in float32 (float64 if the parameters are), and its states have that dtype. A subclass has the
    parameters `embedding` [V, E], `output_weight` [V, K] and `output_bias` [V] besides its own. It implements `_start`
    and `_step`, which must not write to their arguments, since autograd may need them.
    """

    precisions = ("float32",)

    output_bias: Tensor

    @property
    @abstractmethod
    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each state of one sequence, by name."""

    @abstractmethod
    def _start(self, weights: Weights, states: Sequence[Tensor]) -> list[Tensor]:
        """The first `running` of a segment: the states [M, B, ...], then whatever else `_step` carries over."""

    @abstractmethod
    def _step(self, weights: Weights, x_MBE: Tensor, running: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """One token: the input [M, B, K] of the output projection, and the next `running`."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names in `state_shapes`."""
        return tuple(self.state_shapes)

    def initial_states(self, batch_size: int) -> States:
        """The zero states that sequences start from, each [B, ...] with the shape in `state_shapes`."""
        return tuple(
            self.output_weight.new_zeros((batch_size, *shape), dtype=self.wide_dtype)
            for shape in self.state_shapes.values()
        )

    def forward(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """Logits [B, T, V] for the token after each position, in the parameters' dtype, and the states after the last.

        See `LanguageModel.forward`. Each state is [B, ...], float32 (float64 if the parameters are).
        """
        weights, output_TBMK, states = self._outputs(tokens_BT, states)
        scores = F.linear(output_TBMK[:, :, 0], weights["output_weight"][0], weights["output_bias"][0])
        return scores.transpose(0, 1).to(self.output_weight.dtype), states

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """See `LanguageModel.loss`. The mean is taken in float64. Only one tile of logits exists at a time."""
        check_targets_form(tokens_BT, targets_BT)
        if self.device.type == "cpu":
            self.check_batch(tokens_BT, targets_BT)
        weights, output_TBMK, _ = self._outputs(tokens_BT, None)
        total = nats(output_TBMK, weights["output_weight"], weights["output_bias"], targets_BT.t())[0]
        return total / (targets_BT != IGNORE_INDEX).sum()

    @torch.no_grad()
    def next_logits(self, tokens_BT: Tensor, states: States | None = None) -> tuple[Tensor, States]:
        """See `LanguageModel.next_logits`."""
        weights, before = self._weights(), self._start_states(tokens_BT, states)
        latest: list[Tensor] = []

        def keep(output_MBK: Tensor) -> None:
            latest[:] = [output_MBK]

        after = self._run(weights, _embeddings(weights, tokens_BT), before, keep)
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
        """Like `population_loss`, but the sum over the scored positions, so that segments and micro-batches add up.

        Evaluates one chunk of probes at a time, with as many perturbed copies as fit the caches of a CPU or the memory
        of a GPU. Computes in float32 (float64 for float64 parameters), with sums over positions in float64.

        precision: only "float32".
        """
        self._check_population(tokens_BT, targets_BT, seeds, eps, states, precision)
        tokens_BT, targets_BT = tokens_BT.to(self.device), targets_BT.to(self.device)
        offsets, chunk = flat_offsets(self), self.probes_at_once(len(tokens_BT))
        parts = [torch.zeros(0, 2, dtype=torch.float64)]
        with one_thread() if self.device.type == "cpu" and chunk > 1 else nullcontext():
            for first in range(0, len(seeds), chunk):
                probes = slice(first, first + chunk)
                weights = self._perturb(offsets, seeds[probes], eps)
                parts.append(self._chunk_nats(weights, tokens_BT, targets_BT, [state[probes] for state in states]))
        return torch.cat(parts)

    def probes_at_once(self, batch_size: int) -> int:
        """Number of probes with members and states that fit the caches of a CPU or the memory of a GPU; at least 1."""
        parameters = list(self.parameters())
        numbers = sum(p.numel() for p in parameters)
        numbers += _STATE_COPIES * batch_size * sum(torch.Size(shape).numel() for shape in self.state_shapes.values())
        available = members_bytes(parameters, _CPU_BYTES)
        return max(1, available // (2 * self.wide_dtype.itemsize * numbers))

    def _perturb(self, offsets: Mapping[Tensor, int], seeds: Tensor, eps: float) -> Weights:
        """The members at theta + eps * p and theta - eps * p: parameters [2n, ...]."""
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
        """Sums of nats [n, 2] of one chunk, on the CPU. Updates the states [n, 2, B, ...], if there are any."""
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

        after = self._run(weights, _embeddings(weights, tokens_BT), before, project)
        for state, last in zip(states, after, strict=False):
            state.copy_(last.view_as(state))
        return total.view(-1, 2).cpu()

    def _outputs(self, tokens_BT: Tensor, states: States | None) -> tuple[Weights, Tensor, States]:
        """The unperturbed weights, the outputs [T, B, 1, K] after every token, and the states after the last."""
        weights, before = self._weights(), self._start_states(tokens_BT, states)
        x_TMBE = F.embedding(tokens_BT.t(), weights["embedding"][0])[:, None]
        outputs: list[Tensor] = []
        after = self._run(weights, x_TMBE.unbind(), before, outputs.append)
        return weights, torch.stack(outputs).transpose(1, 2), tuple(state[0] for state in after)

    def _weights(self) -> Weights:
        """The unperturbed parameters with M = 1."""
        return {name: p.to(self.wide_dtype)[None] for name, p in self.named_parameters()}

    def _run(
        self, weights: Weights, xs: Iterable[Tensor], before: Sequence[Tensor], consume: Callable[[Tensor], None]
    ) -> States:
        """Steps over embeddings [M, B, E], passes each output to `consume`, and returns the states after the last."""
        running = self._start(weights, before)
        for x_MBE in xs:
            output_MBK, running = self._step(weights, x_MBE, running)
            consume(output_MBK)
        return tuple(running[: len(before)])

    def _start_states(self, tokens_BT: Tensor, states: States | None) -> list[Tensor]:
        """The states [1, B, ...] that the unperturbed model starts from. Checks tokens and states."""
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
        check_seeds(seeds)
        check_scalar(eps, "eps", self.wide_dtype)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
        if precision not in self.precisions:
            raise ValueError(f"the model {self.name} has no {precision} products: use precision='float32'")
        if states:
            self._check_states(states, (len(seeds), 2, len(tokens_BT)), self.wide_dtype)

    def _check_states(self, states: Sequence[Tensor], leading: tuple[int, ...], dtype: torch.dtype | None) -> None:
        """Raises ValueError unless the states fit the model. dtype: required dtype, or None for any."""
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
def one_thread() -> Iterator[None]:
    """Limits torch to one thread, since products that fit the caches are too small to share out.

    At best two threads take three quarters of the time of one. If other processes use a core, they take many times as
    long, because a time step is about forty calls.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _embeddings(weights: Weights, tokens_BT: Tensor) -> Iterable[Tensor]:
    """The embeddings [M, B, E] of each time step, in order."""
    return (weights["embedding"][:, tokens_B] for tokens_B in tokens_BT.unbind(1))
