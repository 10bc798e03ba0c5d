"""What a backend provides. `zo_kernels.backends.reference` says in plain torch what each method computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Element types of every op; a position in this tuple is the kernels' dtype code."""


@dataclass(frozen=True)
class Update:
    """What accumulate_probes does to each element besides adding the sum, in this order; see `zo_kernels.ops`."""

    undo_alpha: float = 0.0
    undo_seed: int = 0
    decay: float = 1.0
    grid: float = 0.0


class CellShape(NamedTuple):
    """How many rows of each kind a recurrent cell has per unit, and how many states (h, or h and c)."""

    input_rows: int
    recurrent_rows: int
    biases: int
    states: int


CELLS = {"lstm": CellShape(4, 4, 4, 2), "gru": CellShape(3, 3, 4, 1), "elman": CellShape(1, 1, 1, 1)}
"""Every recurrent cell by FlashRNN's name; a position in this dictionary is the kernels' cell code."""


PRECISIONS = ("float32", "bfloat16")
"""Of the products with the hidden state in a recurrent forward."""


@dataclass(frozen=True)
class RecurrentWeights:
    """The parameters of a recurrent language model, as `zo_kernels.models.RecurrentLM` describes them.

    tensors: embedding, input_weight, recurrent_weight, bias, output_weight, output_bias. offsets: of each in the flat
    parameter space, -1 for one that is not perturbed.
    """

    cell: str
    tensors: tuple[Tensor, ...]
    offsets: tuple[int, ...]

    @property
    def embedding(self) -> Tensor:
        return self.tensors[0]

    @property
    def input_weight(self) -> Tensor:
        return self.tensors[1]

    @property
    def recurrent_weight(self) -> Tensor:
        return self.tensors[2]

    @property
    def bias(self) -> Tensor:
        return self.tensors[3]

    @property
    def output_weight(self) -> Tensor:
        return self.tensors[4]

    @property
    def output_bias(self) -> Tensor:
        return self.tensors[5]


class Backend(ABC):
    """Computes the ops, on tensors that `zo_kernels.ops` has checked (contiguous, of a known dtype, aligned offset).

    Seeds are int64 (their 64 bits as two's complement). Results are bit for bit those of the reference backend, those
    of the recurrent forwards to the rounding of their arithmetic.
    """

    name: ClassVar[str]
    device_types: ClassVar[tuple[str, ...]]

    @abstractmethod
    def unavailable(self) -> str | None:
        """Why this backend can't be used on this machine, or None if it can.

        Raises RuntimeError if it could be, but for a setting of the user's: then no other backend must step in.
        """

    @abstractmethod
    def probe(self, out: Tensor, seed: int, offset: int) -> None:
        """out = p(seed)."""

    @abstractmethod
    def apply_probe(self, x: Tensor, out: Tensor, alpha: float, seed: int, offset: int) -> None:
        """out = cast(x + alpha * p(seed)); out may be x."""

    def apply_probes(self, x: Tensor, out: Tensor, alpha: Tensor, seeds: Tensor, offset: int) -> None:
        """out[i, 0] = cast(x + alpha * p(seeds[i])), out[i, 1] = cast(x - alpha * p(seeds[i])); out is not x.

        alpha float64, one element, and seeds int64 [n] lie on the CPU or beside x.
        """
        step = float(alpha)
        for seed, (plus, minus) in zip(seeds.tolist(), out.unbind(), strict=True):
            self.apply_probe(x, plus, step, seed, offset)
            self.apply_probe(x, minus, -step, seed, offset)

    @abstractmethod
    def swap_probe(self, x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, offset: int) -> None:
        """x = cast((x + alpha * p(seed)) + next_alpha * p(next_seed))."""

    @abstractmethod
    def accumulate_probes(
        self,
        x: Tensor,
        quantised: npt.NDArray[np.int32],
        shift: int,
        seeds: npt.NDArray[np.int64],
        offset: int,
        update: Update,
    ) -> None:
        """x += (sum_i quantised[i] * p(seeds[i])) * 2^-shift, with `update`."""

    fused_forward: ClassVar[bool] = False
    """Whether recurrent_nats is faster than probe by probe through torch."""

    bfloat16_needs: ClassVar[str] = ""
    """What is missing where `precisions` leaves bfloat16 out."""

    def precisions(self) -> tuple[str, ...]:
        """The precisions that recurrent_nats takes on this machine."""
        return PRECISIONS

    @abstractmethod
    def recurrent_nats(
        self,
        weights: RecurrentWeights,
        tokens: Tensor,
        targets: Tensor,
        seeds: npt.NDArray[np.int64],
        eps: float,
        states: Sequence[Tensor],
        precision: str,
    ) -> Tensor:
        """Sums of nats float64 [n, 2] at theta +- eps * p(seeds[i]); states [n, 2, N, B, D], if any, are carried on.

        precision: "float32", or "bfloat16" for products with the hidden state as `zo_kernels.ops.recurrent_nats` says;
        a backend may be more precise.
        """

    @abstractmethod
    def recurrent_logits(self, weights: RecurrentWeights, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Logits [B, V] after the last token, at theta; states [N, B, D] are carried on."""
