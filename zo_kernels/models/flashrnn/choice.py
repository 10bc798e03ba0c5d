"""Chooses the flashrnn backend for a model's recurrence, as a pure function of the facts.

`cuda` runs a cuBLAS product and a pointwise kernel per step, for heads of any size, in FlashRNN's native layout.
`vanilla` is plain torch and runs anywhere. The automatic choice is between these two. The fused backends run only if
requested by name. They keep the recurrent matrices of a few heads on the chip, which gains less with the hundreds of
heads of a population; they round float32 to TF32, and permute and copy R, b and Wx in every call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...backends.base import CELLS as KERNEL_CELLS
from ...backends.base import CellShape
from .facts import Facts

CELLS = {**KERNEL_CELLS, "slstm": CellShape(4, 4, 4, 4)}
"""flashrnn's cells, with their numbers of input rows, recurrent rows, biases and states (h; h, c; h, c, n, m)."""

BACKENDS = ("cuda", "vanilla", "cuda_fused", "triton_fused")

_AUTOMATIC = ("cuda", "vanilla")

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class FlashBackend:
    """A backend of flashrnn, the reason for its choice, and notes for the user."""

    name: str
    reason: str
    notes: tuple[str, ...] = ()
    automatic: bool = True

    @property
    def compiles(self) -> bool:
        """Whether a call with a new number of heads must be compiled first."""
        return self.name != "vanilla"


def choose(
    cell: str, head_dim: int, dtype: torch.dtype, facts: Facts, *, backend: str | None = None, captured: bool = False
) -> FlashBackend:
    """Chooses the backend for heads of head_dim units in `dtype`, on the machine of `facts`.

    backend: name of the backend to use; None chooses automatically.
    captured: whether calls will be recorded in a CUDA graph.

    Raises ValueError if the name is unknown, and RuntimeError, with the reason, if that backend can't be used.
    """
    if backend is not None:
        if backend not in BACKENDS:
            raise ValueError(f"unknown flashrnn backend {backend!r}: choose one of {', '.join(BACKENDS)}")
        reason = obstacle(backend, cell, head_dim, dtype, facts, captured)
        if reason is not None:
            raise RuntimeError(f"flashrnn's backend {backend!r} can't be used: {reason}")
        return FlashBackend(backend, "requested", _notes(backend, dtype), automatic=False)
    reasons: list[str] = []
    for name in _AUTOMATIC:
        reason = obstacle(name, cell, head_dim, dtype, facts, captured)
        if reason is None:
            return FlashBackend(name, "; ".join(reasons) or "the first choice", _notes(name, dtype))
        reasons.append(f"{name} can't be used: {reason}")
    raise AssertionError("vanilla can always be used")


def obstacle(
    name: str, cell: str, head_dim: int, dtype: torch.dtype, facts: Facts, captured: bool = False
) -> str | None:
    """The reason why flashrnn's backend `name` can't be used, or None if it can."""
    if name == "vanilla":
        return None
    if facts.device_type != "cuda":
        return f"it needs a CUDA device, not {facts.device_type}"
    if dtype not in _KERNEL_DTYPES:
        return f"it does not support {dtype}"
    if name == "triton_fused":
        return _triton_obstacle(cell, head_dim, facts)
    if captured and name == "cuda":
        return "it waits for the device in every call, which a CUDA graph can't record"
    if name == "cuda_fused" and cell == "gru":
        return "it has no GRU (flashrnn would run cuda instead)"
    if name == "cuda_fused" and head_dim % 16:
        return f"its heads must have a multiple of 16 units, not {head_dim}"
    return _build_obstacle(name, facts)


def _triton_obstacle(cell: str, head_dim: int, facts: Facts) -> str | None:
    if cell not in ("lstm", "slstm"):
        return f"it supports only lstm and slstm, not {cell}"
    if head_dim not in (16, 32, 64):
        return f"its heads must have 16, 32 or 64 units, not {head_dim}"
    if facts.triton is None:
        return "Triton is not installed"
    if facts.triton >= (3, 9):
        return f"it uses block pointers, which Triton {facts.triton[0]}.{facts.triton[1]} no longer has"
    return None


def _build_obstacle(name: str, facts: Facts) -> str | None:
    """The reason why flashrnn's CUDA sources can't be compiled at the first call, or None if they can."""
    if facts.torch_cuda is None:
        return "this torch was not built for CUDA"
    if facts.capability < (8, 0):
        return f"it needs compute capability 8.0 or newer, and this device has {'.'.join(map(str, facts.capability))}"
    if facts.toolkit is None:
        return "no nvcc was found to compile it: install the CUDA toolkit, or set CUDA_HOME to its folder"
    home, release = facts.toolkit.home, facts.toolkit.release
    if release[0] != facts.torch_cuda[0]:
        return (
            f"torch was built for CUDA {facts.torch_cuda[0]}, but the toolkit in {home} is CUDA {release[0]}: set "
            "CUDA_HOME to one of the same major release"
        )
    if facts.toolkit.missing:
        return f"the CUDA toolkit in {home} lacks {', '.join(facts.toolkit.missing)}: install all of it"
    if not facts.ninja:
        return "ninja, which compiles it, is not on PATH"
    if name == "cuda_fused" and release >= (13, 0):
        return "flashrnn 1.0.8 reads device properties that CUDA 13 has removed"
    return None


def _notes(name: str, dtype: torch.dtype) -> tuple[str, ...]:
    """Notes for users of a backend."""
    notes = []
    if name in ("cuda", "cuda_fused"):
        notes.append(
            "the first call with a new number of heads compiles for about a minute; later processes wait up to 10 s"
        )
    if name in ("cuda_fused", "triton_fused"):
        notes.append("R, b and Wx are permuted and copied in every call")
        if dtype == torch.float32:
            notes.append("float32 products are rounded to TF32, 10 bits, which blurs differences of losses")
    if name == "triton_fused":
        notes.append("tanh(x) is NaN for x below -44")
    if name == "cuda" and dtype == torch.float16:
        notes.append("float16 products are summed in float16")
    return tuple(notes)
