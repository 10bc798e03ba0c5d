"""Base class of the models with an external memory."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import nn

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

    @property
    def read_size(self) -> int:
        """R W, the size of all read vectors together."""
        return self.num_heads * self.memory_width

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in SIZES)
