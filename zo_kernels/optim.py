"""Zero-order optimizers with torch.optim's face."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .arena import ParameterArena, Slot
from .estimators import CentralDifference, Population
from .gradient import SeedGradient
from .grid import Grid
from .interrupts import deferred_interrupts
from .perturb import GroupUpdate, InPlace, Perturbation, Segment, Shadow
from .philox import probe_seeds

Closure = Callable[[], "Tensor | float"]


@dataclass(frozen=True)
class StepReport:
    """What one step saw.

    losses: float64 [n, 2], at theta + eps p_i and theta - eps p_i. gradient: the rows that were used, in units of loss
    per eps (coefficients of the paper's eq. 7 before the factor eta/eps). loss: mean of the finite losses. skipped:
    probes left out because a loss was NaN or infinite.
    """

    loss: float
    losses: Tensor
    gradient: SeedGradient
    skipped: int


class CDRGE(Optimizer):
    """Central-difference random gradient estimation: Chaubard and Kochenderfer, arXiv 2505.17852.

        theta' = (1 - lr*weight_decay) theta - (lr/eps) * 1/(2n) * sum_i (L+_i - L-_i) p_i

    with n probes p_i in {-1, +1}^d; with eps = lr and no decay their eq. 7. A step calls the closure 2n times, without
    autograd; gradients are neither needed nor made.

    params: parameters, parameter groups or a `ParameterArena`. They move into one flat tensor (see `ParameterArena`):
        build the optimizer after `model.to(...)`.
    lr, eps: step size and perturbation; eps None means eps = lr, at every step (schedulers included). Both, and
        weight_decay and grid, may be set per group.
    probes: n, per step.
    seed: of the run. The seeds of all probes follow from it.
    weight_decay: decoupled.
    mode: "inplace" perturbs the parameters themselves (float32 and float64 only), which are first rounded to a grid of
        spacing 2^-k and so restored bit for bit, with no memory beyond them; eps counts rounded to that grid. "shadow"
        keeps theta in a second copy (float32 for 16-bit parameters) and never writes it before the update. "auto":
        in place where the dtype allows it.
    grid: the spacing, a power of two; None chooses the finest that lets the group's largest parameter grow fourfold.

    Dropout and the like must be off or repeat themselves (`model.eval()`): L+ and L- are compared. Write parameters
    through the parameter (`p.copy_(...)`, `model.load_state_dict`), not through `p.data`, between steps.

    Raises ValueError for hyper-parameters out of range, and what `ParameterArena` and `Grid` raise.
    """

    def __init__(
        self,
        params: Iterable[Any] | ParameterArena,
        lr: float,
        *,
        eps: float | None = None,
        probes: int = 96,
        seed: int = 0,
        weight_decay: float = 0.0,
        mode: str = "auto",
        grid: float | None = None,
    ) -> None:
        if not isinstance(probes, int) or probes < 1:
            raise ValueError(f"probes must be a positive integer, not {probes!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be an integer in [0, 2^64), not {seed!r}")
        if mode not in ("auto", "inplace", "shadow"):
            raise ValueError(f"mode must be 'auto', 'inplace' or 'shadow', not {mode!r}")
        self.probes, self.seed = probes, seed
        self.steps_taken = 0
        self.last: StepReport | None = None
        self.estimator = CentralDifference()
        self._perturbation: Perturbation | None = None  # until the groups are known, in super().__init__
        arena = params if isinstance(params, ParameterArena) else None
        defaults = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "grid": grid}
        super().__init__(arena.parameters if arena else params, defaults)  # type: ignore[arg-type]
        for group in self.param_groups:
            _hyper_parameters(group)
        self.arena = arena or ParameterArena(_named(self.param_groups))
        segments = _segments(self.arena, self.param_groups)
        exact_in_place = self.arena.flat.dtype in (torch.float32, torch.float64)
        self.mode = mode if mode != "auto" else "inplace" if exact_in_place else "shadow"
        if self.mode == "inplace":
            self._perturbation = InPlace(self.arena, segments, [group["grid"] for group in self.param_groups])
        else:
            self._perturbation = Shadow(self.arena, segments)

    @torch.no_grad()
    def step(self, closure: Closure | Population) -> float:  # type: ignore[override]
        """One update. Returns the mean of the probes' finite losses.

        closure: called without arguments 2n times, each time with other parameters; returns the loss (a number or a
            one-element tensor) and must be a function of the parameters alone. Or a `Population`, which is asked once.

        Raises DivergenceError if no probe has two finite losses and GridRangeError if theta could leave its grid's
        range or eps is too fine for it. Whatever is raised, in the closure too, theta is then bit for bit what it was
        and the step not taken; only a Ctrl-C during the update itself waits until the step is.
        """
        theta = self._perturbation
        assert theta is not None
        hyper = [_hyper_parameters(group) for group in self.param_groups]
        eps = theta.begin([h.eps for h in hyper])
        seeds = torch.from_numpy(probe_seeds(self.seed, self.steps_taken, self.probes))
        try:
            if isinstance(closure, Population):
                if len(set(eps)) > 1:
                    raise ValueError("a population is evaluated with one eps, but the groups differ in theirs")
                losses = self.estimator.losses(closure.population_loss, seeds, eps[0])
            else:
                losses = _losses_one_by_one(closure, theta, seeds, eps)
            gradient = self.estimator.gradient(losses, seeds, eps=1.0)
            rows, coeffs = gradient.seeds, gradient.coeffs
            updates = [GroupUpdate(-(h.lr / h.eps) * coeffs, 1.0 - h.lr * h.weight_decay) for h in hyper]
            loss = float(losses[losses.isfinite()].mean())
            with deferred_interrupts():  # the update and its count: both or neither
                theta.update(rows, updates)
                self.steps_taken += 1
                self.last = StepReport(loss, losses, gradient, skipped=len(seeds) - len(rows))
        except BaseException:
            theta.leave()
            raise
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Groups are given at construction: later ones would change the flat parameter space (RuntimeError)."""
        if self._perturbation is not None:
            raise RuntimeError("parameter groups can't be added later: pass all of them when building the optimizer")
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """torch's state_dict, with what a run continues from: saved with the model's own, it resumes bit for bit."""
        state = super().state_dict()
        own: dict[str, Any] = {
            "seed": self.seed,
            "probes": self.probes,
            "steps_taken": self.steps_taken,
            "mode": self.mode,
            "slots": [(slot.offset, slot.numel) for slot in self.arena.slots],
        }
        if isinstance(self._perturbation, InPlace):
            own["grids"] = [None if g is None else g.spacing for g in self._perturbation.grids]
        elif isinstance(self._perturbation, Shadow):
            own["theta"] = self._perturbation.theta
        state["zo_kernels"] = own
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the run a `state_dict` was taken from; load the model's parameters too, before or after.

        Raises ValueError, changing nothing, if it is not of a CDRGE over parameters of the same sizes and mode.
        """
        own = state_dict.get("zo_kernels")
        if own is None:
            raise ValueError("this is not the state of a zo_kernels optimizer")
        slots = [(slot.offset, slot.numel) for slot in self.arena.slots]
        if [tuple(s) for s in own["slots"]] != slots:
            raise ValueError("this state belongs to parameters of other sizes or in another order")
        if own["mode"] != self.mode:
            raise ValueError(f"this state was saved in mode {own['mode']!r}, but the optimizer has mode {self.mode!r}")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "zo_kernels"})
        self.seed, self.probes, self.steps_taken = own["seed"], own["probes"], own["steps_taken"]
        if isinstance(self._perturbation, InPlace):
            dtype = self.arena.flat.dtype
            self._perturbation.grids = [None if g is None else Grid.of_spacing(g, dtype) for g in own["grids"]]
        elif isinstance(self._perturbation, Shadow):
            self._perturbation.theta.copy_(own["theta"])
        assert self._perturbation is not None
        self._perturbation.forget_versions()


@dataclass(frozen=True)
class _HyperParameters:
    lr: float
    eps: float
    weight_decay: float


def _hyper_parameters(group: dict[str, Any]) -> _HyperParameters:
    """A group's, checked: a scheduler or a user may have changed them since the last step."""
    lr = float(group["lr"])
    eps = lr if group["eps"] is None else float(group["eps"])
    weight_decay = float(group["weight_decay"])
    for name, value in (("lr", lr), ("eps", eps)):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, not {value}")
    if not (weight_decay >= 0 and lr * weight_decay <= 1):
        raise ValueError(f"weight_decay must be in [0, 1/lr], not {weight_decay}")
    return _HyperParameters(lr, eps, weight_decay)


def _named(groups: list[dict[str, Any]]) -> list[tuple[str, Tensor]]:
    named: list[tuple[str, Tensor]] = []
    for number, group in enumerate(groups):
        names = group.get("param_names") or [f"{i} of group {number}" for i in range(len(group["params"]))]
        named.extend(zip(names, group["params"], strict=True))
    return named


def _segments(arena: ParameterArena, groups: list[dict[str, Any]]) -> list[Segment]:
    """One stretch of the flat parameter space per group; groups follow each other in it."""
    segments: list[Segment] = []
    taken: set[Slot] = set()
    for number, group in enumerate(groups):
        trained = [p for p in group["params"] if p.requires_grad]
        slots = sorted({arena.slot_of(p) for p in trained}, key=lambda slot: slot.offset)
        slots = [slot for slot in slots if slot not in taken]
        if not slots:
            raise ValueError(f"parameter group {number} has no trainable parameter of its own")
        taken.update(slots)
        if segments:
            segments[-1].stop = slots[0].offset
        segments.append(Segment(slots[0].offset, len(arena), slots))
    return segments


def _losses_one_by_one(closure: Closure, theta: Perturbation, seeds: Tensor, eps: list[float]) -> Tensor:
    """Losses [n, 2] by moving theta from probe to probe: 2n passes over it."""
    losses = []
    minus = [-e for e in eps]
    for seed in seeds.tolist():
        for alphas in (eps, minus):
            theta.move(seed, alphas)
            loss = closure()
            if isinstance(loss, Tensor):
                if loss.numel() != 1:
                    raise ValueError(f"the closure must return one loss, not a tensor of shape {tuple(loss.shape)}")
                losses.append(loss.detach().reshape(()).to(torch.float64, copy=True))  # a copy: it may be reused
            else:
                losses.append(torch.tensor(loss, dtype=torch.float64))
    return torch.stack(losses).view(-1, 2)
