"""What a backend provides. `zo_kernels.backends.reference` says in plain torch what each method computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..distributions import draw

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


_CHUNK = 1 << 20  # elements at a time, to keep the materialised probes small


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def chunks(x: Tensor, offset: int) -> Iterator[tuple[slice, int]]:
    """Parts of x [numel] and where each begins in the flat parameter space."""
    for start in range(0, x.numel(), _CHUNK):
        yield slice(start, min(start + _CHUNK, x.numel())), offset + start


def _draw(like: Tensor, distribution: str, seed: int, offset: int) -> Tensor:
    """p(seed) in the compute dtype of `like`, with its number of elements."""
    return torch.from_numpy(draw(distribution, like.numel(), seed, offset)).to(like.device, compute_dtype(like))


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

    def probe_from(self, distribution: str, out: Tensor, seed: int, offset: int) -> None:
        """out = p(seed), drawn from `distribution`, any name of `zo_kernels.distributions`.

        This and the two below are NumPy on the host, for backends that have no kernel: slow, and the same bits.
        """
        flat = out.view(-1)
        for part, j in chunks(flat, offset):
            flat[part] = _draw(flat[part], distribution, seed, j)

    def apply_probe_from(self, distribution: str, x: Tensor, out: Tensor, alpha: float, seed: int, offset: int) -> None:
        """out = cast(x + alpha * p(seed)); out may be x."""
        flat, result, compute = x.view(-1), out.view(-1), compute_dtype(x)
        step = torch.tensor(alpha, dtype=compute, device=x.device)
        for part, j in chunks(flat, offset):
            result[part] = flat[part].to(compute) + step * _draw(flat[part], distribution, seed, j)

    def accumulate_probes_from(
        self,
        distribution: str,
        x: Tensor,
        coeffs: npt.NDArray[np.float64],
        scale: float,
        seeds: npt.NDArray[np.int64],
        offset: int,
        update: Update,
    ) -> None:
        """x += (sum_i coeffs[i] * p(seeds[i])) * scale, with `update`; summed in float64, in the order of i."""
        flat, compute = x.view(-1), compute_dtype(x)
        unit, undo, decay = (
            torch.tensor(value, dtype=compute, device=x.device) for value in (scale, update.undo_alpha, update.decay)
        )
        for part, j in chunks(flat, offset):
            numel = flat[part].numel()
            total = np.zeros(numel)
            for c, seed in zip(coeffs.tolist(), seeds.tolist(), strict=True):
                total += c * draw(distribution, numel, seed, j).astype(np.float64)
            v = flat[part].to(compute)
            if update.undo_alpha != 0.0:
                v = v + undo * _draw(flat[part], distribution, update.undo_seed, j)
            v = v * decay
            v = v + torch.from_numpy(total).to(x.device, compute) * unit
            if update.grid != 0.0:
                v = torch.round(v * (1.0 / update.grid)) * update.grid
            flat[part] = v.to(x.dtype)

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
