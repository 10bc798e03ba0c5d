"""Notices losses from which nothing can be learned and steps out of scale, and says so once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

_logger = logging.getLogger("zo_kernels")

_NARROWEST_FIRST = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_LEAST_UNITS = 4
"""Differences of fewer units in the last place are mostly rounding errors."""


class Watch:
    """Looks at the losses of each step. Each warning is logged once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def look(self, losses: Tensor) -> None:
        """Warns if all losses are equal, or differ by rounding errors alone.

        losses: float64, at perturbed parameters on one batch; [n, 2] are those of the probes' two sides, L+ and L-.
            Losses that are not finite are passed over.
        """
        finite = losses[losses.isfinite()]
        if finite.numel() < 2:
            return
        low, high = float(finite.min()), float(finite.max())
        if low == high:
            self._warn(
                "equal",
                f"all {finite.numel()} losses of this step are {low:g}: does the closure use the optimizer's "
                "parameters? (load_state_dict(assign=True) and new modules replace them; eps may be too small, too)",
            )
            return
        unit = _last_place(finite)
        # The two sides of a probe may differ by rounding errors alone though losses of different probes differ by more.
        apart = _largest_difference_of_sides(losses)
        what = "the losses on the two sides of a probe" if apart > 0 else "the losses of this step"
        apart = apart or high - low
        if apart < _LEAST_UNITS * unit:
            self._warn(
                "rounded",
                f"{what} differ by at most {apart:.3g}, but are rounded to multiples of {unit:.3g}: use a larger eps, "
                "or return the loss in a wider dtype",
            )

    def look_at_scale(self, largest: float, eps: Sequence[float], moves: Sequence[float] = ()) -> None:
        """Warns if a perturbation or an update is larger than every parameter.

        largest: magnitude of the largest element of all parameters. Nothing is said if it is 0, as before the first
        step of an adapter. eps, moves: of each group; by how much an element typically moves in the step, if known.
        """
        if 0 < largest < max(eps):
            self._warn("eps", f"eps {max(eps):g} is larger than every parameter (at most {largest:.3g}): lower eps")
        if 0 < largest < max(moves, default=0.0):
            self._warn(
                "lr",
                f"this step moves elements by about {max(moves):.3g}, more than every parameter's size (at most "
                f"{largest:.3g}): lower lr",
            )

    def look_at_repeats(self, first: float, second: float) -> None:
        """Warns if two losses at the same parameters differ."""
        if first != second and not (first != first and second != second):
            self._warn(
                "random",
                f"the closure returned {first:.9g} and then {second:.9g} at the same parameters: it must return the "
                "same loss (model.eval() turns dropout off; draw the batch before the step)",
            )

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            _logger.warning("%s", message)


def _last_place(losses: Tensor) -> float:
    """The unit in the last place, at the largest loss, of the narrowest dtype that holds all losses exactly."""
    dtype = next(d for d in _NARROWEST_FIRST if torch.equal(losses.to(d).to(torch.float64), losses))
    return torch.finfo(dtype).eps * float(torch.exp2(losses.abs().max().log2().floor()))


def _largest_difference_of_sides(losses: Tensor) -> float:
    """max |L+ - L-| over the probes with finite losses; 0 if losses are not those of two sides."""
    if losses.dim() != 2 or losses.shape[1] != 2:
        return 0.0
    pairs = losses[losses.isfinite().all(dim=1)]
    return float((pairs[:, 0] - pairs[:, 1]).abs().max()) if len(pairs) else 0.0
