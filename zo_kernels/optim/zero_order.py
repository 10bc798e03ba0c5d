"""The zero-order optimizer: estimate the gradient from losses, transform it, update the parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..distributed.replicas import Replicas, digest
from ..distributions import check_distribution
from ..estimators import Estimate, Estimator, Population, get_estimator
from ..estimators.base import check_clean
from ..gradient import SeedGradient
from ..interrupts import deferred_interrupts
from ..params import ParameterSpace, Slot
from ..perturb import DenseUpdate, GroupUpdate, Perturbation
from ..philox import probe_seeds
from ..transforms import Context, State, Transform, get_transform
from .buffers import BufferKeeper
from .dense import DenseRule, get_dense_rule, write_gradient
from .eager import not_compiled
from .evaluators import Closure, Guard, check_callable, forget_casts, make_evaluator
from .groups import hyper_parameters, name_parameters, reference_eps
from .log import StepLog
from .micro_batches import combine_estimates
from .modules import find_modules, padding_rows
from .state import check_state, load_state, save_state
from .watch import Watch

Loss = Closure | Population

_FIRST_CHECK = 10


class ZeroOrder(Optimizer):
    """Steps along gradients that are estimated from losses alone.

        theta' = (1 - lr*weight_decay) theta - lr * transform(estimate)

    A step evaluates the closure as often as the estimator asks (`estimator.forwards(probes)`), without autograd, and
    now and then twice more (`check_every`). No gradients are needed or computed.

    params: a module, parameters or parameter groups, as torch.optim takes them. The parameters stay where they are, and
        may have several dtypes and devices. Some may be DTensors: build the optimizer after `fully_shard`. A parameter
        is trained at a step if it has requires_grad then. The padding row of an embedding (`padding_idx`) is left as it
        is, which needs a module, `module.parameters()` or `module.named_parameters()`: a list does not tell.
    lr, eps: step size and perturbation. eps None means eps = lr, at every step (schedulers included). Both, and
        weight_decay, maximize and grid, may be set per group. A step with lr 0 changes no parameter, but counts.
    estimator: from losses to coefficients, by its name in `zo_kernels.estimators.ESTIMATORS` or as an object.
    probes: n, per step.
    seed: of the run. The seeds of all probes follow from it.
    distribution: of the probes' elements (`zo_kernels.distributions`).
    transforms: what happens to the estimate's rows, in this order (`zo_kernels.transforms`): one or several, by name or
        as objects.
    dense: a rule with state of the parameters' size, such as `zo_kernels.optim.Adam()` or "adam", applied to the
        transformed gradient written out. None steps along the rows themselves, in one pass without further memory.
    max_cosine_distance: up to which the estimates of micro-batches agree (`zo_kernels.transforms.agreement`). `step`
        then takes a sequence of closures or populations, one per micro-batch. None: no filter.
    weight_decay: decoupled.
    maximize: step towards larger losses.
    mode: "inplace" perturbs the parameters themselves (float32 and float64, probes of -1, 0 and 1 only). They are first
        rounded to a grid of spacing 2^-k, and so restored bit for bit, with no memory beyond them; eps is rounded to
        that grid. "shadow" keeps theta in a second copy (float32 for 16-bit parameters) and never writes it before the
        update. "streamed" never writes theta before the update either, and keeps no copy: torch functions that a
        closure calls with a parameter get a perturbed copy, which dies with its use. Updates of 16-bit parameters are
        rounded stochastically (docs/contract.md). It takes no dense rules and no sharded parameters. "auto" decides for
        each parameter: in place where dtype and distribution allow it, until its grid is too coarse for eps or swallows
        the updates, or the parameter leaves its range; otherwise a shadow copy, or streamed if the 16-bit parameters
        and their shadow copies are larger than the memory of their device.
    grid: the spacing, a power of two. None chooses for each parameter the finest that lets it grow fourfold.
    replicas: processes that share the work of a step and exchange losses (`zo_kernels.distributed.Replicas`). None
        takes those of the default process group of torch.distributed, if one of several processes is initialised. All
        must be built alike and take the same steps on the same batches; they get the bits that one process would.

    check_every: in the tenth step and every so many steps, the closure is evaluated twice more, at theta, and a warning
        is logged if the two losses differ. 0 turns this off.

    Dropout and the like must be off or repeat themselves (`model.eval()`), because losses are compared. Buffers that a
    forward pass changes, such as BatchNorm's statistics, are put back after the step if the module is known, as for
    padding rows. Between steps, write parameters through the parameter (`p.copy_(...)`, `model.load_state_dict`), not
    through `p.data`.

    Raises ValueError for hyper-parameters out of range, and what `ParameterSpace` and `Grid` raise.
    """

    steps_taken: int
    """Number of steps taken, which is also the number of the next step. The seeds of its probes follow from it."""

    last: Estimate | None
    """Estimate of the last step; None before the first."""

    log: StepLog | None
    """Where steps are recorded before they are taken, as `zo_kernels.durable.run` sets it; None for nowhere."""

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float,
        *,
        eps: float | None = None,
        estimator: Estimator | str = "cd",
        probes: int = 96,
        seed: int = 0,
        distribution: str = "rademacher",
        transforms: Transform | str | Sequence[Transform | str] = (),
        dense: DenseRule | str | None = None,
        max_cosine_distance: float | None = None,
        weight_decay: float = 0.0,
        maximize: bool = False,
        mode: str = "auto",
        grid: float | None = None,
        replicas: Replicas | None = None,
        check_every: int = 100,
    ) -> None:
        if not isinstance(check_every, int) or check_every < 0:
            raise ValueError(f"check_every must be an integer of at least 0, not {check_every!r}")
        if not isinstance(probes, int) or probes < 1:
            raise ValueError(f"probes must be a positive integer, not {probes!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be an integer in [0, 2^64), not {seed!r}")
        if mode not in ("auto", "inplace", "shadow", "streamed"):
            raise ValueError(f"mode must be 'auto', 'inplace', 'shadow' or 'streamed', not {mode!r}")
        if mode == "streamed" and dense is not None:
            raise ValueError("a dense rule keeps float32 state of the parameters' size: use it with mode='shadow'")
        if max_cosine_distance is not None and not 0 <= max_cosine_distance <= 2:
            raise ValueError(f"max_cosine_distance must be in [0, 2], not {max_cosine_distance}")
        check_distribution(distribution)
        self.probes, self.seed, self.distribution = probes, seed, distribution
        self.estimator = get_estimator(estimator)
        self.max_cosine_distance = max_cosine_distance
        self.replicas, self.check_every = replicas, check_every
        self.steps_taken, self.last, self.log = 0, None, None
        self.transform = get_transform(transforms) if transforms else None
        self.transform_state: State = self.transform.init() if self.transform else {}
        self.dense = get_dense_rule(dense)
        self._dense_state: dict[Slot, dict[str, Tensor]] = {}
        self._is_built = False
        defaults = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "maximize": maximize, "grid": grid}
        modules = find_modules(params)
        self._buffers, self._watch = BufferKeeper(modules), Watch()
        super().__init__(params.named_parameters() if isinstance(params, nn.Module) else params, defaults)
        for group in self.param_groups:
            hyper_parameters(group)
        self.space = ParameterSpace(name_parameters(self.param_groups), padding_rows(modules))
        if self.space.shards is not None:
            if replicas is not None:
                raise ValueError("replicas of sharded parameters follow from their mesh: leave replicas out")
            if self.space.shards.replica_group is not None:
                self.replicas = Replicas(self.space.shards.replica_group)
        grids = [g["grid"] for g in self.param_groups]
        self.perturbation = Perturbation(self.space, distribution, mode, grids, may_stream=dense is None)
        self._note_offsets()
        self._is_built = True

    @property
    def mode(self) -> str:
        """How parameters are perturbed now: "inplace", "shadow", "streamed", or "mixed" if not all in the same way."""
        return self.perturbation.mode

    @not_compiled
    @torch.no_grad()
    def step(self, closure: Loss | Sequence[Loss]) -> float:  # type: ignore[override]
        """One update: `estimate`, then `apply`. Returns the mean of the probes' finite losses.

        closure: as for `estimate`. Raises as `estimate` and `apply` do. Whatever is raised, in the closure too, theta
        is then bit for bit what it was and the step not taken; a Ctrl-C during the update waits until it is taken.
        """
        try:
            estimate = self._estimate(closure, nullcontext)
            self._apply(estimate)  # which undoes the last probe in the same pass
        except BaseException:
            self.perturbation.leave()
            raise
        return estimate.loss

    @not_compiled
    @torch.no_grad()
    def estimate(self, closure: Loss | Sequence[Loss], *, guard: Guard = nullcontext) -> Estimate:
        """Measures losses and estimates the gradient of the next step.

        The parameters are afterwards what they were, but that the first step rounds them to their grid.

        closure: called without arguments, each time with other parameters. It returns the loss (a number or a
            one-element tensor) and must be a function of the parameters alone. Or a `Population`, which is asked for
            many losses at once. With `max_cosine_distance`, a sequence of them, one per micro-batch.
        guard: makes a context that is entered for each evaluation of losses, such as `InterruptGate.open`.

        Raises DivergenceError if no probe has finite losses, GridRangeError if theta + eps could leave its grid's range
        or eps is too fine for it, and ValueError for a closure of the wrong kind.
        """
        try:
            return self._estimate(closure, guard)
        finally:
            self.perturbation.leave()

    @not_compiled
    @torch.no_grad()
    def apply(self, estimate: Estimate) -> None:
        """Takes the next step along its estimate, with the groups' present lr and weight_decay.

        Raises ValueError if it is not this optimizer's estimate of the next step, and GridRangeError if theta could
        leave its grid's range; theta is then bit for bit what it was and the step not taken.
        """
        if len(estimate.eps) != len(self.param_groups) or estimate.distribution != self.distribution:
            raise ValueError("this estimate is not one of this optimizer: apply what its estimate() returns")
        if (estimate.step, len(estimate.coeffs)) != (self.steps_taken, self.probes):
            raise ValueError(
                f"this is an estimate of step {estimate.step} from {len(estimate.coeffs)} probes, but step "
                f"{self.steps_taken} from {self.probes} is next: apply each estimate once, in order"
            )
        self.perturbation.begin(estimate.eps)
        self._apply(estimate)

    @not_compiled
    @torch.no_grad()
    def replay(self, coeffs: Tensor) -> None:
        """Takes the next step again, from its coefficients alone: bit for bit what it was, without a forward pass.

        coeffs: float32 [probes], as `Estimate.coeffs`. lr and eps must be those of the step. Raises ValueError if their
        number is wrong, and as `apply`.
        """
        if coeffs.shape != (self.probes,) or coeffs.dtype != torch.float32:
            raise ValueError(
                f"coeffs must be float32 of shape ({self.probes},), not {coeffs.dtype} {tuple(coeffs.shape)}"
            )
        losses = torch.zeros(0, dtype=torch.float64)
        eps = tuple(self._begin())
        self._apply(Estimate(self._seeds(), coeffs, losses, self.distribution, self.steps_taken, eps))

    def digest(self) -> int:
        """64 bits that tell theta from any that differs in one bit: what replicas compare."""
        return digest(*self.perturbation.tensors)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Appends a group. Its parameters get the next free numbers of the flat parameter space."""
        modules = find_modules([param_group])
        super().add_param_group(param_group)
        if not self._is_built:
            return
        added = self.param_groups[-1:]
        try:
            hyper_parameters(added[0])
            (named,) = name_parameters(added, len(self.param_groups) - 1)
            self.perturbation.add_group(named, padding_rows(modules), added[0]["grid"])
        except BaseException:
            del self.param_groups[-1]
            raise
        self._buffers.add(modules)
        self._note_offsets()

    def state_dict(self) -> dict[str, Any]:
        """torch's state_dict, with what a run continues from: saved with the model's own, it resumes bit for bit.

        `state` has, for each parameter, its offset in the flat parameter space, the spacing of its grid or its shadow
        copy, and the state of the dense rule. The first of `param_groups` has what belongs to the optimizer.
        """
        return save_state(self, super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues the run a `state_dict` was taken from; load the model's parameters too, before or after.

        Raises ValueError, changing nothing, if it is not of an optimizer over parameters of the same sizes, with the
        same mode, transforms and dense rule, and sharded alike where the state has their size.
        """
        saved = check_state(self, state_dict)
        super().load_state_dict(saved.torch_part)
        for group in self.param_groups:  # of older states
            group.setdefault("maximize", False)
        load_state(self, saved)
        self._note_offsets()

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and copy.deepcopy take: everything but hooks and process groups, as torch's optimizers do."""
        kept = {name: value for name, value in self.__dict__.items() if not name.startswith("_optimizer_")}
        return {**kept, "replicas": None, "log": None}

    def _note_offsets(self) -> None:
        """Makes `state` what torch's tools expect: an entry for each parameter."""
        for p in self.space.parameters:
            self.state[p] = {"offset": self.space.slot_of(p).offset}

    def _begin(self) -> list[float]:
        """Reads parameters that were written since the last step, and returns the eps of each group."""
        wanted = [hyper_parameters(group).eps for group in self.param_groups]
        return self.perturbation.begin(wanted, self.estimator.probes_at_once)

    def _seeds(self) -> Tensor:
        return torch.from_numpy(probe_seeds(self.seed, self.steps_taken, self.probes))

    def _estimate(self, closure: Loss | Sequence[Loss], guard: Guard) -> Estimate:
        """As `estimate`, but leaves the parameters where the last loss was evaluated."""
        if self.max_cosine_distance is None:
            if isinstance(closure, Sequence):
                raise ValueError("a sequence of closures is for optimizers with max_cosine_distance: pass one closure")
        elif not isinstance(closure, Sequence) or not closure:
            raise ValueError("with max_cosine_distance, step takes a sequence of closures, one per micro-batch")
        for loss in closure if isinstance(closure, Sequence) else [closure]:
            check_callable(loss)
        eps, seeds = self._begin(), self._seeds()
        if self.log is not None and (known := self.log.find(self.steps_taken, eps)) is not None:
            losses = torch.tensor([known[1]], dtype=torch.float64)
            return Estimate(seeds, known[0], losses, self.distribution, self.steps_taken, tuple(eps))
        replicas = self.replicas
        if replicas is None and self.space.shards is None:
            replicas = Replicas.find_default()
        if replicas is not None:
            replicas.begin_step(self.steps_taken, self.digest)
        reference = reference_eps(eps)

        def estimate_one(loss: Loss) -> Estimate:
            evaluator = make_evaluator(loss, self.perturbation, eps, guard, replicas)
            if reference > 0:
                found = self.estimator(evaluator, seeds, reference, self.distribution)
                self._watch.look(found.losses)
                return found
            clean = evaluator.clean()  # eps = lr = 0: there is nothing to measure a slope with, and no use for it
            check_clean(clean)
            zeros = torch.zeros(len(seeds), dtype=torch.float64)
            return Estimate(seeds, zeros, zeros.new_tensor([clean]), self.distribution)

        try:
            with self._buffers.kept():
                if isinstance(closure, Sequence):
                    assert self.max_cosine_distance is not None
                    estimate = combine_estimates([estimate_one(loss) for loss in closure], self.max_cosine_distance)
                else:
                    estimate = estimate_one(closure)
                number = self.steps_taken + 1
                if self.check_every and (number == _FIRST_CHECK or number % self.check_every == 0):
                    self._check_randomness(closure, eps, guard)
        finally:
            forget_casts()  # of the last point
        return replace(estimate.round_to_float32(), step=self.steps_taken, eps=tuple(eps))

    def _check_randomness(self, closure: Loss | Sequence[Loss], eps: Sequence[float], guard: Guard) -> None:
        """Evaluates a closure twice at theta. A population is taken to be deterministic."""
        loss = closure[0] if isinstance(closure, Sequence) else closure
        if not isinstance(loss, Population):
            evaluator = make_evaluator(loss, self.perturbation, eps, guard, None)
            self._watch.look_at_repeats(evaluator.clean(), evaluator.clean())

    def _apply(self, estimate: Estimate) -> None:
        hyper = [hyper_parameters(group) for group in self.param_groups]
        gradient, state = estimate.gradient, self.transform_state
        if self.transform is not None:
            context = Context(self.steps_taken, hyper[0].lr, self.space.num_parameters, reference_eps(estimate.eps))
            gradient, state = self.transform.update(gradient, state, context)
        # A group with another eps has moved by other amounts: the same differences are other slopes.
        reference = reference_eps(estimate.eps)
        scales = [reference / eps if eps > 0 else 0.0 for eps in estimate.eps]
        recording = nullcontext() if self.log is None else self.log.recording(estimate)
        with deferred_interrupts(), recording:  # the row, the update and its count: all or none
            if self.dense is not None:
                self._watch.look_at_scale(self.perturbation.largest, estimate.eps)  # a rule's moves are its own
                updates = [DenseUpdate(h.sign * h.lr, 1.0 - h.lr * h.weight_decay) for h in hyper]
                self.perturbation.update_densely(self._direction(self.dense, gradient, scales), updates)
            elif any(h.lr > 0 for h in hyper):
                rounding_seed = int(estimate.seeds[0])  # of another stream than the probe
                rows = [
                    GroupUpdate(-h.sign * h.lr * scale * gradient.coeffs, 1.0 - h.lr * h.weight_decay, rounding_seed)
                    for h, scale in zip(hyper, scales, strict=True)
                ]
                moves = [u.typical_move for u in rows]
                self._watch.look_at_scale(self.perturbation.largest, estimate.eps, moves)
                self.perturbation.update(gradient.seeds, rows)
            else:
                self.perturbation.leave()
            self.transform_state = state
            self.steps_taken += 1
            self.last = estimate
        forget_casts()  # of the parameters before the step

    def _direction(self, dense: DenseRule, gradient: SeedGradient, scales: Sequence[float]) -> dict[Slot, Tensor]:
        """The descent direction of each trained parameter. Advances the state of the rule."""
        direction = write_gradient(gradient, self.perturbation, scales)
        for slot, written in direction.items():
            if slot not in self._dense_state:
                self.perturbation.leave()
                self._dense_state[slot] = dense.init(self.perturbation.theta(slot))
            direction[slot] = dense.update(written, self._dense_state[slot], self.steps_taken)
        return direction
