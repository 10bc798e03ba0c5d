"""The zero-order optimizer: estimate, transform, update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .. import ops
from ..distributed.replicas import Replicas, digest
from ..distributions import check_distribution, is_exact_in_place
from ..errors import DivergenceError
from ..estimators import CentralDifference, Estimator, Population
from ..gradient import SeedGradient
from ..interrupts import deferred_interrupts
from ..params.grid import Grid
from ..params.layout import Arena
from ..params.sharded import ShardedArena, arena_of
from ..perturb import DenseUpdate, GroupUpdate, InPlace, Perturbation, Shadow
from ..philox import probe_seeds
from ..transforms import Context, State, Transform, chain
from .dense import DenseRule
from .estimating import estimated
from .evaluators import Closure
from .groups import HyperParameters, hyper_parameters, name_parameters, segments_of
from .report import StepReport


class ZeroOrder(Optimizer):
    """Steps along gradients that are estimated from losses alone.

        theta' = (1 - lr*weight_decay) theta - lr * transform(estimate)

    A step calls the closure as often as the estimator asks (`estimator.forwards(probes)`), without autograd; gradients
    are neither needed nor made.

    params: parameters, parameter groups or an arena. They move into one flat tensor (see `ParameterArena`), or, where
        some are DTensors, stay where they are (`ShardedArena`): build the optimizer after `model.to(...)` and
        `fully_shard`.
    lr, eps: step size and perturbation; eps None means eps = lr, at every step (schedulers included). Both, and
        weight_decay and grid, may be set per group.
    estimator: from losses to coefficients (`zo_kernels.estimators`). None: central differences.
    probes: n, per step.
    seed: of the run. The seeds of all probes follow from it.
    distribution: of the probes' elements (`zo_kernels.distributions`).
    transforms: what happens to the estimate's rows, in this order (`zo_kernels.transforms`).
    dense: a rule with state of the parameters' size, such as `zo_kernels.optim.Adam()`, applied to the transformed
        gradient written out; None steps along the rows themselves, in one pass without any further memory.
    max_cosine_distance: up to which the estimates of micro-batches agree (`zo_kernels.transforms.agreement`).
        `step` then takes a sequence of closures or populations, one per micro-batch. None: no filter.
    weight_decay: decoupled.
    mode: "inplace" perturbs the parameters themselves (float32 and float64, probes of -1, 0 and 1 only), which are
        first rounded to a grid of spacing 2^-k and so restored bit for bit, with no memory beyond them; eps counts
        rounded to that grid. "shadow" keeps theta in a second copy (float32 for 16-bit parameters) and never writes it
        before the update. "auto": in place where dtype and distribution allow it.
    grid: the spacing, a power of two; None chooses the finest that lets the group's largest parameter grow fourfold.
    replicas: processes that share the work of a step and exchange losses (`zo_kernels.distributed.Replicas`); None
        takes those of the default process group of torch.distributed, if one of several processes is initialised. All
        must be built alike and take the same steps on the same batches; they get the bits that one process alone would.

    Dropout and the like must be off or repeat themselves (`model.eval()`): losses are compared. Write parameters
    through the parameter (`p.copy_(...)`, `model.load_state_dict`), not through `p.data`, between steps.

    Raises ValueError for hyper-parameters out of range, and what `ParameterArena`, `ShardedArena` and `Grid` raise.
    """

    before_update: Callable[[StepReport], None] | None
    """Called when the estimate is there and theta is not yet changed: where a journal writes its row. If it raises, the
    step is not taken. The parameters may then be at a probe, not at theta."""

    def __init__(
        self,
        params: Iterable[Any] | Arena,
        lr: float,
        *,
        eps: float | None = None,
        estimator: Estimator | None = None,
        probes: int = 96,
        seed: int = 0,
        distribution: str = "rademacher",
        transforms: Sequence[Transform] = (),
        dense: DenseRule | None = None,
        max_cosine_distance: float | None = None,
        weight_decay: float = 0.0,
        mode: str = "auto",
        grid: float | None = None,
        replicas: Replicas | None = None,
    ) -> None:
        if not isinstance(probes, int) or probes < 1:
            raise ValueError(f"probes must be a positive integer, not {probes!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be an integer in [0, 2^64), not {seed!r}")
        if mode not in ("auto", "inplace", "shadow"):
            raise ValueError(f"mode must be 'auto', 'inplace' or 'shadow', not {mode!r}")
        if max_cosine_distance is not None and not 0 <= max_cosine_distance <= 2:
            raise ValueError(
                f"max_cosine_distance must be in [0, 2], the range of a cosine distance, not {max_cosine_distance}"
            )
        check_distribution(distribution)
        self.probes, self.seed, self.distribution = probes, seed, distribution
        self.estimator = CentralDifference() if estimator is None else estimator
        self.max_cosine_distance = max_cosine_distance
        self.replicas = replicas
        self.steps_taken = 0
        self.last: StepReport | None = None
        self.before_update = None
        self._transform = chain(*transforms)
        self._transform_state: State = self._transform.init()
        self._dense, self._dense_state = dense, {}
        self._perturbation: Perturbation | None = None  # until the groups are known, in super().__init__
        arena = params if isinstance(params, Arena) else None
        defaults = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "grid": grid}
        super().__init__(arena.parameters if arena else params, defaults)  # type: ignore[arg-type]
        for group in self.param_groups:
            hyper_parameters(group)
        self.arena = arena or arena_of(name_parameters(self.param_groups))
        if isinstance(self.arena, ShardedArena):
            if replicas is not None:
                raise ValueError("replicas of sharded parameters follow from their mesh: leave replicas out")
            if self.arena.replica_group is not None:
                self.replicas = Replicas(self.arena.replica_group)
        segments = segments_of(self.arena, self.param_groups)
        exact_in_place = self.arena.dtype in (torch.float32, torch.float64) and is_exact_in_place(distribution)
        self.mode = mode if mode != "auto" else "inplace" if exact_in_place else "shadow"
        if self.mode == "inplace":
            grids = [group["grid"] for group in self.param_groups]
            self._perturbation = InPlace(self.arena, segments, distribution, grids)
        else:
            self._perturbation = Shadow(self.arena, segments, distribution)
        if dense is not None:
            self._dense_state = dense.init(self._perturbation.theta)

    @torch.no_grad()
    def step(self, closure: Closure | Population | Sequence[Closure | Population]) -> float:  # type: ignore[override]
        """One update. Returns the mean of the probes' finite losses.

        closure: called without arguments, each time with other parameters; returns the loss (a number or a one-element
            tensor) and must be a function of the parameters alone. Or a `Population`, which is asked for many losses
            at once. With `max_cosine_distance`, a sequence of them, one per micro-batch.

        Raises DivergenceError if no probe has finite losses and GridRangeError if theta could leave its grid's range or
        eps is too fine for it. Whatever is raised, in the closure too, theta is then bit for bit what it was and the
        step not taken; only a Ctrl-C during the update itself waits until the step is.
        """
        theta, hyper, eps = self._begin()
        seeds = self._seeds()
        replicas = self._replicas()
        if replicas is not None:
            replicas.begin_step(self.steps_taken, self.digest)
        try:
            estimate = estimated(
                closure,
                self.estimator,
                theta,
                seeds,
                eps,
                max_cosine_distance=self.max_cosine_distance,
                replicas=replicas,
            )
            coeffs = torch.full((len(seeds),), math.nan, dtype=torch.float32)
            coeffs[torch.isin(seeds, estimate.gradient.seeds)] = _as_float32(estimate.gradient.coeffs)
            self._advance(estimate.losses, coeffs, theta, hyper, eps)
        except BaseException:
            theta.leave()
            raise
        assert self.last is not None
        return self.last.loss

    @torch.no_grad()
    def replay(self, coeffs: Tensor) -> None:
        """Takes the next step again, from its coefficients alone: bit for bit what it was, without a forward pass.

        coeffs: float32 [probes], as `StepReport.coeffs`. lr and eps must be those of the step. `before_update` is not
        called. Raises ValueError if their number is wrong, and as `step`.
        """
        if coeffs.shape != (self.probes,) or coeffs.dtype != torch.float32:
            raise ValueError(
                f"coeffs must be float32 of shape ({self.probes},), not {coeffs.dtype} {tuple(coeffs.shape)}"
            )
        theta, hyper, eps = self._begin()
        losses = torch.zeros(0, dtype=torch.float64)
        self._advance(losses, coeffs, theta, hyper, eps, hook=False)

    def digest(self) -> int:
        """64 bits that tell theta from any that differs in one bit: what replicas compare."""
        assert self._perturbation is not None
        return digest(*self._perturbation.tensors)

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
            "transforms": dict(self._transform_state),
            "dense": dict(self._dense_state),
        }
        if isinstance(self.arena, ShardedArena):
            own["spans"] = self.arena.spans
        if isinstance(self._perturbation, InPlace):
            own["grids"] = [None if g is None else g.spacing for g in self._perturbation.grids]
        elif isinstance(self._perturbation, Shadow):
            own["theta"] = self._perturbation.theta
        state["zo_kernels"] = own
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the run a `state_dict` was taken from; load the model's parameters too, before or after.

        Raises ValueError, changing nothing, if it is not of an optimizer over parameters of the same sizes, with the
        same mode, transforms and dense rule, and sharded alike where the state has their size.
        """
        own = state_dict.get("zo_kernels")
        if own is None:
            raise ValueError("this is not the state of a zo_kernels optimizer")
        slots = [(slot.offset, slot.numel) for slot in self.arena.slots]
        if [tuple(s) for s in own["slots"]] != slots:
            raise ValueError("this state belongs to parameters of other sizes or in another order")
        spans = self.arena.spans if isinstance(self.arena, ShardedArena) else []
        if [tuple(s) for s in own.get("spans", [])] != spans and (self._dense_state or self.mode == "shadow"):
            raise ValueError("this state was saved with the parameters sharded otherwise: load it on as many processes")
        if own["mode"] != self.mode:
            raise ValueError(f"this state was saved in mode {own['mode']!r}, but the optimizer has mode {self.mode!r}")
        for kind, mine in (("transforms", self._transform_state), ("dense", self._dense_state)):
            if own[kind].keys() != mine.keys():
                raise ValueError(f"this state was saved with other {kind}: build the optimizer with the same")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "zo_kernels"})
        self.seed, self.probes, self.steps_taken = own["seed"], own["probes"], own["steps_taken"]
        self._transform_state = {name: value.clone() for name, value in own["transforms"].items()}
        for name, value in self._dense_state.items():
            value.copy_(own["dense"][name])
        if isinstance(self._perturbation, InPlace):
            dtype = self.arena.dtype
            self._perturbation.grids = [None if g is None else Grid.of_spacing(g, dtype) for g in own["grids"]]
        elif isinstance(self._perturbation, Shadow):
            self._perturbation.theta.copy_(own["theta"])
        assert self._perturbation is not None
        self._perturbation.forget_versions()

    def _begin(self) -> tuple[Perturbation, list[HyperParameters], list[float]]:
        assert self._perturbation is not None
        hyper = [hyper_parameters(group) for group in self.param_groups]
        return (
            self._perturbation,
            hyper,
            self._perturbation.begin([h.eps for h in hyper], self.estimator.probes_at_once),
        )

    def _replicas(self) -> Replicas | None:
        """Who shares this step's work: of sharded parameters, those who hold the same parts."""
        if self.replicas is None and not isinstance(self.arena, ShardedArena):
            return Replicas.find_default()
        return self.replicas

    def _seeds(self) -> Tensor:
        return torch.from_numpy(probe_seeds(self.seed, self.steps_taken, self.probes))

    def _advance(
        self,
        losses: Tensor,
        coeffs: Tensor,
        theta: Perturbation,
        hyper: Sequence[HyperParameters],
        eps: Sequence[float],
        *,
        hook: bool = True,
    ) -> None:
        """From the estimate, coeffs float32 [probes], to theta'."""
        valid = ~coeffs.isnan()
        gradient = SeedGradient(self._seeds()[valid], coeffs[valid], self.distribution)
        report = StepReport(
            self.steps_taken,
            float(losses[losses.isfinite()].mean()),
            losses,
            gradient,
            coeffs,
            skipped=int((~valid).sum()),
            lr=hyper[0].lr,
            eps=hyper[0].eps,
        )
        context = Context(self.steps_taken, hyper[0].lr, self.arena.num_parameters)
        transformed, state = self._transform.update(gradient, self._transform_state, context)
        # A group with another eps has moved by other amounts: the same differences are other slopes.
        scales = [eps[0] / e for e in eps]
        if hook and self.before_update is not None:
            self.before_update(report)
        with deferred_interrupts():  # the update and its count: both or neither
            if self._dense is None:
                updates = [
                    GroupUpdate(-h.lr * scale * transformed.coeffs, 1.0 - h.lr * h.weight_decay)
                    for h, scale in zip(hyper, scales, strict=True)
                ]
                theta.update(transformed.seeds, updates)
            else:
                self._update_densely(theta, transformed, hyper, scales)
            self._transform_state = state
            self.steps_taken += 1
            self.last = report

    def _update_densely(
        self, theta: Perturbation, gradient: SeedGradient, hyper: Sequence[HyperParameters], scales: Sequence[float]
    ) -> None:
        assert self._dense is not None
        written = self.arena.zeros(theta.dtype)
        for segment, scale in zip(theta.segments, scales, strict=True):
            kernel = partial(
                ops.accumulate_probes_,
                coeffs=scale * gradient.coeffs,
                seeds=gradient.seeds,
                distribution=self.distribution,
            )
            self.arena.each_of(written, segment, kernel)
        self.arena.clear_padding(written)
        direction = self._dense.update(written, self._dense_state, self.steps_taken)
        theta.update_densely(direction, [DenseUpdate(h.lr, 1.0 - h.lr * h.weight_decay) for h in hyper])


def _as_float32(coeffs: Tensor) -> Tensor:
    """Rows are kept, sent and replayed with coefficients of four bytes, so they are used with no more."""
    narrow = coeffs.float()
    if not bool(narrow.isfinite().all()):
        raise DivergenceError("a coefficient of the gradient is beyond float32: lower lr or eps, or check the loss")
    return narrow
