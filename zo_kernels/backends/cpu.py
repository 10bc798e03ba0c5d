"""The compiled CPU kernels (csrc/cpu), chosen at run time for the processor's instruction set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..distributions import parse
from .activity import kernel
from .activity.batched import activity as batched_activity
from .activity.problem import ActivityGradient, ActivityProblem
from .base import CELLS, DTYPES, PRECISIONS, WEIGHT_NAMES, Backend, RecurrentWeights, Update
from .dnc import reference as dnc_reference
from .dnc.weights import DNC_MODELS, DncWeights
from .pieces import Pieces
from .recurrent import reference

try:
    from zo_kernels import _C
except ImportError as error:  # a checkout that was not built: unavailable() says so to whoever asks for this backend
    _C = None  # type: ignore[assignment]
    _import_error = str(error)

_CODE: dict[torch.dtype, int] = {dtype: code for code, dtype in enumerate(DTYPES)}
_CELL_CODE = {cell: code for code, cell in enumerate(CELLS)}
_MASK = 2**64 - 1


def rounding_key(update: Update) -> int | None:
    """Returns the seed of stochastic rounding as 64 unsigned bits, None where there is none."""
    return None if update.rounding_seed is None else update.rounding_seed & _MASK


def missing_module() -> str:
    """Returns why the compiled module could not be imported, for backends that need it."""
    return f"its compiled module is missing ({_import_error}); install the package with `pip install .`"


def is_built() -> bool:
    """Whether the compiled module could be imported."""
    return _C is not None


class CpuBackend(Backend):
    """Computes on CPU tensors, on as many threads as torch.set_num_threads says.

    Recurrent forwards of float64 weights take the slow reference, because the kernel computes in float32.
    """

    name = "cpu"
    device_types = ("cpu",)
    fused_forward = True
    bfloat16_needs = "a processor with AVX512_BF16"

    def unavailable(self) -> str | None:
        if _C is None:
            return missing_module()
        _C.active_isa()  # raises if ZO_KERNELS_ISA can't be had
        return None

    def precisions(self) -> tuple[str, ...]:
        return PRECISIONS if _C.has_bfloat16() else ("float32",)

    def recurrent_forward(self, weights: RecurrentWeights, batch_size: int, precision: str) -> str:
        return "reference" if weights.bias.dtype == torch.float64 else "kernel"

    def probe(self, out: Tensor, seed: int, offset: int, distribution: str) -> None:
        target = out.data_ptr(), _CODE[out.dtype], out.numel()
        if distribution == "rademacher":
            _C.probe(*target, seed & _MASK, offset)
        else:
            _C.probe_from(*parse(distribution), *target, seed & _MASK, offset)

    def apply_probe(self, x: Tensor, out: Tensor, alpha: float, seed: int, offset: int, distribution: str) -> None:
        from_, to, numel = x.data_ptr(), out.data_ptr(), x.numel()
        if distribution == "rademacher":
            _C.apply_probe(from_, _CODE[x.dtype], to, _CODE[out.dtype], numel, alpha, seed & _MASK, offset)
        else:
            kind = parse(distribution)
            _C.apply_probe_from(*kind, from_, _CODE[x.dtype], to, _CODE[out.dtype], numel, alpha, seed & _MASK, offset)

    def swap_probe(self, x: Tensor, alpha: float, seed: int, next_alpha: float, next_seed: int, offset: int) -> None:
        _C.swap_probe(
            x.data_ptr(), _CODE[x.dtype], x.numel(), alpha, seed & _MASK, next_alpha, next_seed & _MASK, offset
        )

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
        target = x.data_ptr(), _CODE[x.dtype], x.numel()
        undo = update.undo_alpha, update.undo_seed & _MASK
        rounding = rounding_key(update)
        if distribution == "rademacher":
            table = coeffs.ctypes.data, seeds.ctypes.data, len(seeds)
            _C.accumulate_probes(*target, *table, shift, offset, *undo, update.decay, update.grid, rounding)
        else:
            factors = coeffs.astype(np.float64, copy=False)
            table = factors.ctypes.data, seeds.ctypes.data, len(seeds)
            kind, scale = parse(distribution), 2.0**-shift
            _C.accumulate_probes_from(*kind, *target, *table, scale, offset, *undo, update.decay, update.grid, rounding)

    def apply_probe_list(self, x: Pieces, out: Pieces, alpha: float, seed: int, distribution: str) -> None:
        tables = x.table, _CODE[x.dtype], out.table, _CODE[out.dtype]
        if distribution == "rademacher":
            _C.apply_probe_list(*tables, alpha, seed & _MASK)
        else:
            _C.apply_probe_list_from(*parse(distribution), *tables, alpha, seed & _MASK)

    def swap_probe_list(self, x: Pieces, alpha: float, seed: int, next_alpha: float, next_seed: int) -> None:
        _C.swap_probe_list(x.table, _CODE[x.dtype], alpha, seed & _MASK, next_alpha, next_seed & _MASK)

    def accumulate_probes_list(
        self,
        x: Pieces,
        coeffs: npt.NDArray[np.int32] | npt.NDArray[np.float64],
        shift: int,
        seeds: npt.NDArray[np.int64],
        update: Update,
        distribution: str,
    ) -> None:
        target, undo = (x.table, _CODE[x.dtype]), (update.undo_alpha, update.undo_seed & _MASK)
        rounding = rounding_key(update)
        if distribution == "rademacher":
            rows = coeffs.ctypes.data, seeds.ctypes.data, len(seeds)
            _C.accumulate_probes_list(*target, *rows, shift, *undo, update.decay, update.grid, rounding)
        else:
            factors = coeffs.astype(np.float64, copy=False)
            rows = factors.ctypes.data, seeds.ctypes.data, len(seeds)
            kind, scale = parse(distribution), 2.0**-shift
            _C.accumulate_probes_list_from(*kind, *target, *rows, scale, *undo, update.decay, update.grid, rounding)

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
        if weights.bias.dtype == torch.float64:
            return reference.recurrent_nats(weights, tokens, targets, seeds, eps, states)
        nats = torch.zeros(len(seeds), 2, dtype=torch.float64)
        if len(seeds) == 0:  # an empty tensor has no address
            return nats
        _evaluate(weights, tokens, targets, seeds, 2, eps, precision == "bfloat16", states, nats)
        return nats

    def recurrent_logits(self, weights: RecurrentWeights, tokens: Tensor, states: Sequence[Tensor]) -> Tensor:
        if weights.bias.dtype == torch.float64:
            return reference.recurrent_logits(weights, tokens, states)
        logits = torch.empty(len(tokens), len(weights.embedding), dtype=torch.float32)
        seeds, nats = np.zeros(1, np.int64), torch.zeros(1, dtype=torch.float64)
        _evaluate(weights, tokens, None, seeds, 1, 0.0, False, states, nats, logits=logits)
        return logits

    def recurrent_score(
        self, weights: RecurrentWeights, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        if weights.bias.dtype == torch.float64:
            return reference.recurrent_score(weights, tokens, targets, states)
        nats, correct = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
        _evaluate(weights, tokens, targets, np.zeros(1, np.int64), 1, 0.0, False, states, nats, correct=correct)
        return nats[0], correct[0]

    def recurrent_activity(self, problem: ActivityProblem) -> ActivityGradient:
        return kernel.activity(_C, problem) if kernel.has_kernel(problem) else batched_activity(problem)

    def dnc_nats(
        self,
        weights: DncWeights,
        tokens: Tensor,
        targets: Tensor,
        seeds: npt.NDArray[np.int64],
        eps: float,
        states: Sequence[Tensor],
    ) -> Tensor:
        if weights.output_bias.dtype == torch.float64:
            return dnc_reference.dnc_nats(weights, tokens, targets, seeds, eps, states)
        nats = torch.zeros(len(seeds), 2, dtype=torch.float64)
        if len(seeds):  # an empty tensor has no address
            _evaluate_dnc(weights, tokens, targets, seeds, 2, eps, states, nats)
        return nats

    def dnc_score(
        self, weights: DncWeights, tokens: Tensor, targets: Tensor, states: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        if weights.output_bias.dtype == torch.float64:
            return dnc_reference.dnc_score(weights, tokens, targets, states)
        nats, correct = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
        _evaluate_dnc(weights, tokens, targets, np.zeros(1, np.int64), 1, 0.0, states, nats, correct)
        return nats[0], correct[0]


def _evaluate_dnc(
    weights: DncWeights,
    tokens: Tensor,
    targets: Tensor,
    seeds: npt.NDArray[np.int64],
    num_signs: int,
    eps: float,
    states: Sequence[Tensor],
    nats: Tensor,
    correct: Tensor | None = None,
) -> None:
    """Calls the kernel for models with a memory, as `_evaluate` does the one for recurrent models."""
    _C.evaluate_dnc(
        DNC_MODELS.index(weights.model),
        _CODE[weights.output_bias.dtype],
        [(x.data_ptr(), offset) for x, offset in zip(weights.tensors, weights.offsets, strict=True)],
        weights.sizes,
        weights.memory.data_ptr(),
        tokens.data_ptr(),
        targets.data_ptr(),
        tokens.shape[0],
        tokens.shape[1],
        seeds.ctypes.data,
        len(seeds),
        num_signs,
        eps,
        [state.data_ptr() for state in states],
        nats.data_ptr(),
        0 if correct is None else correct.data_ptr(),
    )


def _evaluate(
    weights: RecurrentWeights,
    tokens: Tensor,
    targets: Tensor | None,
    seeds: npt.NDArray[np.int64],
    num_signs: int,
    eps: float,
    bfloat16: bool,
    states: Sequence[Tensor],
    nats: Tensor,
    correct: Tensor | None = None,
    logits: Tensor | None = None,
) -> None:
    """Calls the kernel, which writes `nats` [n, num_signs] and, if given, `correct` [n, num_signs] and `logits` [B, V].

    It overwrites `states`.

    num_signs: 2 for theta + eps * p and theta - eps * p, 1 for the first alone.
    """
    vocab_size, embed_dim = weights.embedding.shape
    _, num_heads, head_dim = weights.bias.shape
    places = {
        name: (x.data_ptr(), offset)
        for name, x, offset in zip(weights.names, weights.tensors, weights.offsets, strict=True)
    }
    addresses = [state.data_ptr() for state in states] + [0, 0]
    _C.evaluate_population(
        _CELL_CODE[weights.cell],
        _CODE[weights.bias.dtype],
        [places.get(name, (0, -1)) for name in WEIGHT_NAMES],
        [vocab_size, embed_dim, weights.num_layers, num_heads, head_dim],
        weights.residual,
        tokens.data_ptr(),
        0 if targets is None else targets.data_ptr(),
        tokens.shape[0],
        tokens.shape[1],
        seeds.ctypes.data,
        len(seeds),
        num_signs,
        eps,
        bfloat16,
        addresses[0],
        addresses[1],
        nats.data_ptr(),
        0 if correct is None else correct.data_ptr(),
        0 if logits is None else logits.data_ptr(),
    )
