"""Base class of the models with an external memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..backends import backend_for
from ..backends.base import DTYPES
from ..backends.dnc.weights import DncSizes, DncWeights
from ..ops import dnc_nats, dnc_score
from ..params.space import flat_offsets
from .language import CALL_WORK, States
from .members import MembersLM

SIZES = ("vocab_size", "embed_dim", "hidden_size", "memory_slots", "memory_width", "num_heads")


class MemoryLM(MembersLM):
    """A language model with an LSTM controller that writes and reads a memory of N slots of width W by R read heads.

    Base class of DNC and PaperDNC, which define what a step computes.

    vocab_size, embed_dim: V and E.
    hidden_size: H, the size of the controller.
    memory_slots, memory_width: N and W.
    num_heads: R.
    seed: seed of the initial parameters, which are then the same on every device and do not use torch's global random
        state; None uses that state.
    device, dtype: device and dtype of the parameters; any floating dtype.

    Raises ValueError if a size is not a positive integer.
    """

    memory_slots: int
    memory_width: int

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        hidden_size: int,
        memory_slots: int,
        memory_width: int,
        num_heads: int = 1,
        *,
        seed: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = (vocab_size, embed_dim, hidden_size, memory_slots, memory_width, num_heads)
        self._set_sizes(**dict(zip(SIZES, sizes, strict=True)))
        self._add_parameters(lambda *shape: nn.Parameter(torch.empty(*shape, device=device, dtype=dtype)))
        self.reset_parameters(None if seed is None else torch.Generator().manual_seed(seed))

    @abstractmethod
    def _add_parameters(self, empty: Callable[..., nn.Parameter]) -> None:
        """Sets the parameters as attributes, in their order. Each is made by `empty(*shape)`."""

    @abstractmethod
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws new parameters with `generator`, on its device, or from torch's global random state if None."""

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

        On the CPU a kernel evaluates all probes in one call, in memory that does not grow with T. Elsewhere, and
        for parameters of float64 or of several dtypes, torch evaluates one chunk of probes at a time with perturbed
        copies, see `MembersLM`.

        precision: only "float32".
        """
        if not self._has_kernel():
            return super().population_nats(tokens_BT, targets_BT, seeds, eps, states=states, precision=precision)
        self._check_population(tokens_BT, targets_BT, seeds, eps, states, precision)
        return dnc_nats(self._dnc_weights(perturbed=True), tokens_BT, targets_BT, seeds, eps, states)

    def forward_name(self, batch_size: int, precision: str = "float32") -> str:
        """See `LanguageModel.forward_name`."""
        return "kernel" if self._has_kernel() else super().forward_name(batch_size, precision)

    def _scored_at_once(self, batch_size: int) -> int:
        if not self._has_kernel():
            return super()._scored_at_once(batch_size)
        return max(1, int(CALL_WORK / (batch_size * self.num_products)))

    def _score(self, tokens_BT: Tensor, targets_BT: Tensor, states: States) -> tuple[float, int, States]:
        if not self._has_kernel():
            return super()._score(tokens_BT, targets_BT, states)
        carried = tuple(state.detach().to(self.wide_dtype, copy=True).contiguous() for state in states)
        nats, correct = dnc_score(self._dnc_weights(perturbed=False), tokens_BT, targets_BT, carried)
        return float(nats), int(correct), carried

    def _has_kernel(self) -> bool:
        dtype, device = self.output_weight.dtype, self.device.type
        if device != "cpu" or dtype == torch.float64 or dtype not in DTYPES or not backend_for(device).fused_forward:
            return False
        return all(p.dtype == dtype and p.device.type == device for p in self.parameters())

    def _dnc_weights(self, *, perturbed: bool) -> DncWeights:
        sizes = self.vocab_size, self.embed_dim, self.hidden_size, self.memory_slots, self.memory_width, self.num_heads
        tensors = tuple(self.parameters())
        offsets = flat_offsets(self) if perturbed else {}
        memory = self.initial_states(1)[self.state_names.index("memory")][0]
        return DncWeights(self.name, DncSizes(*sizes), memory, tuple(offsets.get(p, -1) for p in tensors), tensors)

    @property
    def read_size(self) -> int:
        """R W, the size of all read vectors together."""
        return self.num_heads * self.memory_width

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in SIZES)
