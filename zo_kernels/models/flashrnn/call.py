"""A model's recurrence through flashrnn, in its native layout: nothing is permuted or copied on the way."""

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
"""What flashrnn's `cuda` computes in; its letter H counts heads, MN here."""

MAX_ELEMENTS = 2**31 - 1
"""flashrnn's offsets are 32-bit integers."""

MAX_HEADS = 65535
"""The largest grid in z, along which `cuda` launches heads."""

_EXPECTED = {torch.float32: 2e-5, torch.bfloat16: 0.05, torch.float16: 0.01}
"""By how much two steps may be off for their rounding alone."""

_WRONG = 0.3
"""By how much they are off, of hidden states in [-1, 1], where something else than rounding is the matter."""


class Recurrence:
    """All time steps of a cell's heads in one call of flashrnn, with the backend that works where the tensors are.

    cell: one of choice.CELLS. head_dim: D. backend: a name, or None to choose. captured: whether the calls are to be
    recorded in a CUDA graph.

    A backend is chosen at the first call for a device and dtype, and logged; before its results are trusted, those of
    the first call with a number of heads are compared with `vanilla` in float64. Where an automatic choice can't be
    built, or is wrong, `vanilla` takes over with a warning; one asked for by name raises RuntimeError.
    """

    def __init__(self, cell: str, head_dim: int, backend: str | None = None, captured: bool = False) -> None:
        self.cell = cell
        self.head_dim = head_dim
        self._asked = backend
        self._captured = captured
        self._chosen: dict[tuple[torch.device, torch.dtype], FlashBackend] = {}
        self._proven: set[tuple[torch.device, torch.dtype, int]] = set()

    def backend(self, device: torch.device, dtype: torch.dtype) -> FlashBackend:
        """Raises as `choice.choose`."""
        if (device, dtype) not in self._chosen:
            facts = gather(device)
            chosen = choose(self.cell, self.head_dim, dtype, facts, backend=self._asked, captured=self._captured)
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
        """Hidden states after every step [T, B, MN, D], and all states after the last [S, B, MN, D].

        wx: input projections [T, B, MN, I, D]. states: before the first step [S, B, MN, D]. recurrent: [MN, P, R, D].
        bias: [MN, G, D]. All of one dtype, and contiguous.

        Raises ValueError if the call is too large for flashrnn, and RuntimeError as the class says.
        """
        check_size(self.cell, len(wx), wx.shape[1], len(recurrent), self.head_dim)
        chosen = self.backend(wx.device, wx.dtype)
        key = (wx.device, wx.dtype, len(recurrent))
        if chosen.name == "vanilla" or key in self._proven:
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
                self._proven.add(key)
                return hidden, last
            problem = f"is wrong: two steps are off by {deviation:.2g}"
        if not chosen.automatic:
            raise RuntimeError(f"flashrnn's backend {chosen.name!r} {problem}; use backend='vanilla'") from failure
        _logger.warning(
            "flashrnn's backend %s %s; its backend vanilla, which is slow, takes over", chosen.name, problem
        )
        self._chosen[wx.device, wx.dtype] = FlashBackend("vanilla", f"{chosen.name} {problem}")
        return self._run("vanilla", wx, states, recurrent, bias)

    @property
    def num_states(self) -> int:
        return CELLS[self.cell].states

    def _run(self, name: str, wx: Tensor, states: Tensor, recurrent: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config(name, wx.dtype, len(recurrent), wx.shape[1])
        with torch.cuda.device_of(wx):  # flashrnn's streams are those of the current device
            every, last = flashrnn().flashrnn(wx, recurrent, bias, states[:, None], config=config)
        return every[0], last[:, 0].clone()  # flashrnn's is a view of the states of all steps, and would keep them

    def config(self, name: str, dtype: torch.dtype, heads: int, batch_size: int) -> Any:
        """A call's FlashRNNConfig; that of flashrnn itself takes T for B in this layout, and bfloat16 for granted."""
        return flashrnn().FlashRNNConfig(
            backend=name,
            function=self.cell,
            head_dim=self.head_dim,
            num_heads=heads,
            # cuda compiles it in, but does not use it: a constant saves compiling again for another batch
            batch_size=8 if name == "cuda" else batch_size,
            dtype=str(dtype).removeprefix("torch."),
            **LAYOUT,
        )

    @torch.no_grad()
    def _deviation(self, hidden: Tensor, wx: Tensor, states: Tensor, recurrent: Tensor, bias: Tensor) -> float:
        """By how much two steps of a few sequences and heads are off `vanilla` in float64, where that is finite."""
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
            "flashrnn's backend %s, with %d heads in %s, is off vanilla in float64 by %.1g; rounding is worth %.1g",
            name,
            heads,
            str(dtype).removeprefix("torch."),
            deviation,
            _EXPECTED[dtype],
        )


def first_line(error: Exception) -> str:
    """Of its message, which may be a compiler's log."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def elements(cell: str, steps: int, batch_size: int, heads: int, head_dim: int) -> int:
    """Of the largest tensor in flashrnn's call: its offsets are 32-bit."""
    return (steps + 1) * batch_size * heads * head_dim * max(CELLS[cell])


def check_size(cell: str, steps: int, batch_size: int, heads: int, head_dim: int) -> None:
    if heads > MAX_HEADS:
        raise ValueError(
            f"flashrnn takes at most {MAX_HEADS} heads in a call, not {heads}: evaluate fewer probes at once"
        )
    if elements(cell, steps, batch_size, heads, head_dim) > MAX_ELEMENTS:
        raise ValueError(
            f"a batch of {batch_size} with {heads} heads of {head_dim} units over {steps} steps is too large for "
            "flashrnn's 32-bit offsets: use a smaller micro-batch or a shorter segment"
        )
