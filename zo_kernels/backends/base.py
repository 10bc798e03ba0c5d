"""The interface of a backend. `zo_kernels.backends.reference` says in NumPy and torch what each method computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .dnc.weights import DncWeights
from .pieces import Pieces

if TYPE_CHECKING:
    from .activity.problem import ActivityGradient, ActivityProblem

DTYPES: tuple[torch.dtype, ...] = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Element types of every op; a position in this tuple is the kernels' dtype code."""


class Update(NamedTuple):
    """What accumulate_probes does to each element besides adding the sum; see `zo_kernels.ops.accumulate_probes_`."""

    undo_alpha: float = 0.0
    undo_seed: int = 0
    decay: float = 1.0
    grid: float = 0.0
    rounding_seed: int | None = None


class CellShape(NamedTuple):
    """How many rows of each kind a recurrent cell has per unit, and how many states (h, or h and c)."""

    input_rows: int
    recurrent_rows: int
    biases: int
    states: int


CELLS = {"lstm": CellShape(4, 4, 4, 2), "gru": CellShape(3, 3, 4, 1), "elman": CellShape(1, 1, 1, 1)}
"""Every recurrent cell by FlashRNN's name; a position in this dictionary is the kernels' cell code."""


NORM_EPS = 1e-5
"""What a layer norm adds to the variance."""

PRECISIONS = ("float32", "bfloat16")
"""Of the products with the hidden state in a recurrent forward."""

FORWARDS = ("auto", "kernel", "batched")
"""Who computes a recurrent population: the backend's own choice, a fused kernel, or torch with members as a batch."""


class RecurrentWeights(NamedTuple):
    """The parameters of a recurrent language model, with the shapes that `zo_kernels.models.RecurrentLM` gives them.

    V tokens, embeddings of size E, L layers of N heads of D units, H = N * D; the cell says how many rows (in `CELLS`)
    there are per unit.
    """

    cell: str
    offsets: tuple[int, ...]
    """Of each tensor in the flat parameter space, -1 for one that is not perturbed."""
    embedding: Tensor
    """[V, E]"""
    input_weight: Tensor
    """[input rows, N, D, E]"""
    recurrent_weight: Tensor
    """[recurrent rows, N, D, D]"""
    bias: Tensor
    """[biases, N, D]"""
    output_weight: Tensor
    """[V, H]"""
    output_bias: Tensor
    """[V]"""
    upper_input_weight: Tensor | None = None
    """[L - 1, input rows, N, D, H], of the layers after the first, as the next two; None if L = 1"""
    upper_recurrent_weight: Tensor | None = None
    """[L - 1, recurrent rows, N, D, D]"""
    upper_bias: Tensor | None = None
    """[L - 1, biases, N, D]"""
    norm_weight: Tensor | None = None
    """[L, H], or None without layer norm"""
    norm_bias: Tensor | None = None
    """[L, H], or None without layer norm"""
    residual: bool = False
    """Whether each layer after the first adds its input to its output."""

    @classmethod
    def of(
        cls, cell: str, offsets: Sequence[int], tensors: Sequence[Tensor], residual: bool = False
    ) -> RecurrentWeights:
        """The weights with these tensors, in order: six, with three more if L > 1 and two more with layer norm.

        Raises ValueError for any other number of tensors.
        """
        names = list(WEIGHT_NAMES[:6])
        if len(tensors) in (9, 11):
            names += WEIGHT_NAMES[6:9]
        if len(tensors) in (8, 11):
            names += WEIGHT_NAMES[9:]
        if len(names) != len(tensors) or len(offsets) != len(tensors):
            raise ValueError(
                f"there are 6, 8, 9 or 11 weights with an offset each, not {len(tensors)} with {len(offsets)}"
            )
        return cls(cell, tuple(offsets), **dict(zip(names, tensors, strict=True)), residual=residual)

    @property
    def names(self) -> list[str]:
        """The names of the tensors that there are, in order."""
        return [name for name in WEIGHT_NAMES if getattr(self, name) is not None]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that there are, in order."""
        return tuple(getattr(self, name) for name in self.names)

    @property
    def upper(self) -> list[Tensor]:
        """The input weight, recurrent weight and bias of the layers after the first, or nothing if L = 1."""
        return [x for x in self[8:11] if x is not None]

    @property
    def num_layers(self) -> int:
        """L."""
        return 1 if self.upper_bias is None else 1 + len(self.upper_bias)


WEIGHT_NAMES = RecurrentWeights._fields[2:-1]
"""The tensors of `RecurrentWeights` by name, in order."""


class Backend(ABC):
    """Computes the ops, on tensors that `zo_kernels.ops` has checked: contiguous, of a dtype in `DTYPES`.

    Offsets are multiples of 128. Seeds are int64, their 64 bits as two's complement. `distribution` is any name of
    `zo_kernels.distributions`; methods without that argument are for Rademacher probes. Results are those of the
    reference backend, bit for bit, and up to the rounding of their arithmetic for the recurrent forwards.
    """

    name: ClassVar[str]
    """By which users choose the backend."""

    device_types: ClassVar[tuple[str, ...]]
    """The torch device types on whose tensors it computes, such as "cpu" and "cuda"."""

    fused_forward: ClassVar[bool] = False
    """Whether recurrent_nats is faster than torch's forward, probe by probe."""

    bfloat16_needs: ClassVar[str] = ""
    """What is missing where `precisions` leaves out bfloat16."""

    @abstractmethod
    def unavailable(self) -> str | None:
        """Returns why this backend can't be used on this machine, or None if it can.

        Raises RuntimeError where only a setting of the user's is in the way. No other backend must step in then.
        """

    def precisions(self) -> tuple[str, ...]:
        """Returns the precisions that recurrent_nats takes on this machine. "float32" is always among them."""
        return PRECISIONS

    def recurrent_forward(self, weights: RecurrentWeights, batch_size: int, precision: str) -> str:
        """Returns which forward recurrent_nats runs for these weights.

        "kernel" or the name of a GPU's kernel, "batched" (in torch), or "reference" (in torch, and slow).

        Raises RuntimeError, in one sentence, if none computes them in a precision that is among `precisions`.
        """
        return "reference"

    @abstractmethod
    def probe(self, out: Tensor, seed: int, offset: int, distribution: str) -> None:
        """out = p(seed)."""

    @abstractmethod
    def apply_probe(self, x: Tensor, out: Tensor, alpha: float, seed: int, offset: int, distribution: str) -> None:
        """out = cast(x + alpha * p(seed)). out, of x's shape and any dtype, may be x."""

    def apply_probes(self, x: Tensor, out: Tensor, alpha: Tensor, seeds: Tensor, offset: int) -> None:
        """out[i, 0] = cast(x + alpha * p(seeds[i])), out[i, 1] = cast(x - alpha * p(seeds[i])); out is not x.

        out [n, 2, *x.shape] may have any dtype. alpha (float64, one element) and seeds (int64 [n]) lie on the CPU or on
        x's device. Rademacher probes.
        """
        step = float(alpha)
        for seed, (plus, minus) in zip(seeds.tolist(), out.unbind(), strict=True):
            self.apply_probe(x, plus, step, seed, offset, "rademacher")
            self.apply_probe(x, minus, -step, seed, offset, "rademacher")

    @abstractmethod
    def swap_probe(self, x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, offset: int) -> None:
        """x = cast((x + alpha * p(seed)) + next_alpha * p(next_seed)), for Rademacher probes."""

    @abstractmethod
    def accumulate_probes(
        self,
        x: Tensor,
        coeffs: npt.NDArray[np.int32] | npt.NDArray[np.float64],
        shift: int,
        seeds: npt.NDArray[np.int64],
        offset: int,
        update: Update,
        distribution: str,
    ) -> None:
        """x += (sum_i coeffs[i] * p(seeds[i])) * 2^-shift, with `update`.

        coeffs [n] are int32, their absolute values with a sum below 2^31, for Rademacher and sparse probes, whose sums
        are exact. They are float64 for other distributions, and the sum is taken in float64 in the order of i.
        """

    def apply_probe_list(self, x: Pieces, out: Pieces, alpha: float, seed: int, distribution: str) -> None:
        """As `apply_probe` for each piece. A backend with a kernel for lists does it in one call, or launch.

        out, of any dtype, has the sizes and offsets of x, or is x.
        """
        for source, target, offset in zip(x.tensors, out.tensors, x.offsets, strict=True):
            self.apply_probe(source, target, alpha, seed, offset, distribution)

    def swap_probe_list(self, x: Pieces, alpha: float, seed: int, next_alpha: float, next_seed: int) -> None:
        """As `swap_probe` for each piece, likewise."""
        for tensor, offset in zip(x.tensors, x.offsets, strict=True):
            self.swap_probe(tensor, alpha, seed, next_alpha, next_seed, offset)

    def accumulate_probes_list(
        self,
        x: Pieces,
        coeffs: npt.NDArray[np.int32] | npt.NDArray[np.float64],
        shift: int,
        seeds: npt.NDArray[np.int64],
        update: Update,
        distribution: str,
    ) -> None:
        """As `accumulate_probes` for each piece, likewise."""
        for tensor, offset in zip(x.tensors, x.offsets, strict=True):
            self.accumulate_probes(tensor, coeffs, shift, seeds, offset, update, distribution)

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
        """Returns sums of nats at theta + eps * p(seeds[i]) and theta - eps * p(seeds[i]): float64 [n, 2] on the CPU.

        tokens and targets are int64 [B, T] on the weights' device. states are empty, or those before the first token,
        each [n, 2, L * N, B, D], and are overwritten with those after the last. precision says how products with the
        hidden state are computed, as in `zo_kernels.ops.recurrent_nats`; a backend may be more precise.
        """

    @abstractmethod
    def recurrent_score(
        self, weights: RecurrentWeights, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns the sum of nats at theta and how many targets have the largest logit: float64 and int64 scalars.

        Of equal logits the first counts. states, each [L * N, B, D], are those before the first token, and are
        overwritten with those after the last.
        """

    @abstractmethod
    def recurrent_logits(self, weights: RecurrentWeights, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
        """Returns logits [B, V] after the last of tokens int64 [B, T], at theta.

        states, each [L * N, B, D], are those before the first token, and are overwritten with those after the last.
        """

    @abstractmethod
    def recurrent_activity(self, problem: ActivityProblem) -> ActivityGradient:
        """Returns the gradient of the sum of nats by activity perturbation; see `zo_kernels.backends.activity`.

        tokens and targets are int64 [B, T] on the weights' device. The states are not changed.
        """

    @abstractmethod
    def dnc_nats(
        self,
        weights: DncWeights,
        tokens: Tensor,
        targets: Tensor,
        seeds: npt.NDArray[np.int64],
        eps: float,
        states: Sequence[Tensor],
    ) -> Tensor:
        """As `recurrent_nats`, for a model with a memory; states are those of the model, each [n, 2, B, ...]."""

    @abstractmethod
    def dnc_score(
        self, weights: DncWeights, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """As `recurrent_score`, for a model with a memory; states are those of the model, each [B, ...]."""
