"""Runs a model's recurrence by flashrnn, in the native layout, without permuting or copying."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from .choice import CELLS, FlashBackend, choose
from .facts import gather
from .load import flashrnn

_logger = logging.getLogger("zo_kernels")

LAYOUT = {"input_shape": "TBHGD", "recurrent_shape": "HPGD", "bias_shape": "HGD", "output_shape": "STBHD"}
"""The native layout of flashrnn's backend `cuda`. Its letter H counts heads, which are MN here."""

MAX_ELEMENTS = 2**31 - 1
"""flashrnn's offsets are 32-bit integers."""

MAX_HEADS = 65535
"""Largest grid in z, along which the backend `cuda` launches heads."""

_EXPECTED = {torch.float32: 2e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest error of two steps that rounding alone explains."""

_WRONG = 0.3
"""Error of two steps, for hidden states in [-1, 1], above which a backend counts as wrong."""


class Recurrence:
    """Computes all time steps of a cell's heads in one call of flashrnn.

    cell: one of choice.CELLS. head_dim: D. backend: a name, or None to choose one. captured: whether calls will be
    recorded in a CUDA graph.

    The first call for a device and dtype chooses a backend and logs it. The first call with a number of heads compares
    the result with `vanilla` in float64. If an automatically chosen backend can't be built or is wrong, `vanilla`
    replaces it with a warning. If a backend requested by name fails, RuntimeError is raised.
    """

    def __init__(self, cell: str, head_dim: int, backend: str | None = None, captured: bool = False) -> None:
        self.cell = cell
        self.head_dim = head_dim
        self._requested = backend
        self._captured = captured
        self._chosen: dict[tuple[torch.device, torch.dtype], FlashBackend] = {}
        self._verified: set[tuple[torch.device, torch.dtype, int]] = set()

    def backend(self, device: torch.device, dtype: torch.dtype) -> FlashBackend:
        """The backend for a device and dtype, chosen at the first call. Raises the errors of `choice.choose`."""
        if (device, dtype) not in self._chosen:
            facts = gather(device)
            chosen = choose(self.cell, self.head_dim, dtype, facts, backend=self._requested, captured=self._captured)
            last_resort = chosen.automatic and chosen.name == "vanilla" and device.type == "cuda" and not self._captured
            _logger.log(
                logging.WARNING if last_resort else logging.INFO,
                "flashrnn computes %s heads of %d units in %s on %s by its backend %s (%s)%s",
                self.cell,
                self.head_dim,
                str(dtype).removeprefix("torch."),
                device,
                chosen.name,
                chosen.reason,
                "".join(f"; {note}" for note in chosen.notes),
            )
            self._chosen[device, dtype] = chosen
        return self._chosen[device, dtype]

    def __call__(self, wx: Tensor, states: Tensor, recurrent: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden states after every step, [T, B, MN, D], and all states after the last, [S, B, MN, D].

        wx: input projections [T, B, MN, I, D]. states: states before the first step, [S, B, MN, D]. recurrent: [MN, P,
        R, D]. bias: [MN, G, D]. All are contiguous and of one dtype.

        Raises ValueError if the call is too large for flashrnn, and RuntimeError if a requested backend fails.
        """
        check_size(self.cell, len(wx), wx.shape[1], len(recurrent), self.head_dim)
        chosen = self.backend(wx.device, wx.dtype)
        key = (wx.device, wx.dtype, len(recurrent))
        if chosen.name == "vanilla" or key in self._verified:
            return self._run(chosen.name, wx, states, recurrent, bias)
        failure: Exception | None = None
        try:
            hidden, last = self._run(chosen.name, wx, states, recurrent, bias)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, OSError, ImportError) as error:
            failure, problem = error, f"can't be built: {first_line(error)}"
        else:
            deviation = self._deviation(hidden, wx, states, recurrent, bias)
            self._report(chosen.name, wx.dtype, len(recurrent), deviation)
            if deviation <= _WRONG:
                self._verified.add(key)
                return hidden, last
            problem = f"is wrong: two steps have an error of {deviation:.2g}"
        if not chosen.automatic:
            raise RuntimeError(f"flashrnn's backend {chosen.name!r} {problem}; use backend='vanilla'") from failure
        _logger.warning("flashrnn's backend %s %s; using the slow backend vanilla instead", chosen.name, problem)
        self._chosen[wx.device, wx.dtype] = FlashBackend("vanilla", f"{chosen.name} {problem}")
        return self._run("vanilla", wx, states, recurrent, bias)

    @property
    def num_states(self) -> int:
        """S, the number of states of the cell."""
        return CELLS[self.cell].states

    def _run(self, name: str, wx: Tensor, states: Tensor, recurrent: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config(name, wx.dtype, len(recurrent), wx.shape[1])
        with torch.cuda.device_of(wx):  # flashrnn uses streams of the current device
            every, last = flashrnn().flashrnn(wx, recurrent, bias, states[:, None], config=config)
        return every[0], last[:, 0].clone()  # the last states are a view that keeps all states alive

    def config(self, name: str, dtype: torch.dtype, heads: int, batch_size: int) -> Any:
        """The FlashRNNConfig of a call. flashrnn's default mistakes T for B in this layout, and assumes bfloat16."""
        return flashrnn().FlashRNNConfig(
            backend=name,
            function=self.cell,
            head_dim=self.head_dim,
            num_heads=heads,
            # cuda compiles the batch size in without using it; a constant avoids recompiling for another batch
            batch_size=8 if name == "cuda" else batch_size,
            dtype=str(dtype).removeprefix("torch."),
            **LAYOUT,
        )

    @torch.no_grad()
    def _deviation(self, hidden: Tensor, wx: Tensor, states: Tensor, recurrent: Tensor, bias: Tensor) -> float:
        """Largest error of two steps of some sequences and heads, compared with `vanilla` in float64 where finite."""
        expected, _ = self._run(
            "vanilla",
            wx[:2, :16, :64].double(),
            states[:, :16, :64].double(),
            recurrent[:64].double(),
            bias[:64].double(),
        )
        off = (hidden[:2, :16, :64].double() - expected).abs()
        worst = float(torch.where(expected.isfinite(), off, 0).max())
        return math.inf if math.isnan(worst) else worst

    def _report(self, name: str, dtype: torch.dtype, heads: int, deviation: float) -> None:
        _logger.log(
            logging.WARNING if deviation > _EXPECTED[dtype] else logging.INFO,
            "flashrnn's backend %s, with %d heads in %s, differs from vanilla in float64 by %.1g (rounding: %.1g)",
            name,
            heads,
            str(dtype).removeprefix("torch."),
            deviation,
            _EXPECTED[dtype],
        )


def first_line(error: Exception) -> str:
    """First line of an error's message, which may be a compiler's log."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def elements(cell: str, steps: int, batch_size: int, heads: int, head_dim: int) -> int:
    """Number of elements of the largest tensor in a call of flashrnn."""
    return (steps + 1) * batch_size * heads * head_dim * max(CELLS[cell])


def check_size(cell: str, steps: int, batch_size: int, heads: int, head_dim: int) -> None:
    """Raises ValueError if a call is too large for flashrnn."""
    if heads > MAX_HEADS:
        raise ValueError(
            f"flashrnn takes at most {MAX_HEADS} heads in a call, not {heads}: evaluate fewer probes at once"
        )
    if elements(cell, steps, batch_size, heads, head_dim) > MAX_ELEMENTS:
        raise ValueError(
            f"a batch of {batch_size} with {heads} heads of {head_dim} units over {steps} steps is too large for "
            "flashrnn's 32-bit offsets: use a smaller micro-batch or a shorter segment"
        )
