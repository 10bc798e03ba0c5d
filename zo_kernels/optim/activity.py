"""Activity perturbation (node perturbation): estimates of the parameters' size, for any optimizer of torch."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch

from ..distributed.replicas import Replicas, digest
from ..interrupts import deferred_interrupts
from ..philox import probe_seeds
from .parts import Guard, LossInParts, mean_gradient


class ActivityPerturbation:
    """Trains a recurrent language model along gradients estimated by perturbing its activities.

        opt = ActivityPerturbation(torch.optim.AdamW(model.parameters(), lr=0.01), probes=4, eps=2**-7)
        loss = opt.step(model.activity(tokens, targets))

    In the literature this is node perturbation. Each probe moves all pre-activations of the recurrent layer by +eps or
    -eps, with signs of its own for every sequence and step, and a step takes 2 n + 1 forward passes. docs/activity.md
    compares it with `ZeroOrder`, which moves parameters.

    optimizer: any optimizer of torch over parameters of the model. It steps along the estimate, which is in `p.grad`
        meanwhile, with its own learning rate, momentum and weight decay. Schedulers take it.
    probes: n, at least 1.
    eps: by how much a pre-activation is moved, positive and finite. The bias grows with its square.
    seed: of the run, in [0, 2^64). The seeds of all probes follow from it.
    replicas: processes that share the micro-batches of each step, and add up their gradients exactly. None takes those
        of the default process group of torch.distributed, if one of several processes is initialised. All must be built
        alike and take the same steps on the same batches; they get the bits that one process would.

    Raises ValueError for values out of range.

    Sources: Werfel, Xie and Seung, "Learning curves for stochastic gradient descent in linear feedforward networks",
    NIPS 2003; Fernandez, Keemink and van Gerven, arXiv 2405.08967, for recurrent networks.
    """

    optimizer: torch.optim.Optimizer
    steps_taken: int
    """Number of steps taken, which is also the number of the next step. The seeds of its probes follow from it."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        probes: int = 4,
        eps: float = 2.0**-7,
        seed: int = 0,
        replicas: Replicas | None = None,
    ) -> None:
        if not isinstance(probes, int) or probes < 1:
            raise ValueError(f"probes must be a positive integer, not {probes!r}")
        if not (math.isfinite(eps) and eps > 0):
            raise ValueError(f"eps must be positive and finite, not {eps}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be an integer in [0, 2^64), not {seed!r}")
        self.optimizer, self.probes, self.eps, self.seed = optimizer, probes, eps, seed
        self.replicas, self.steps_taken = replicas, 0

    def step(self, loss: LossInParts) -> float:
        """Takes a step, and returns the loss before it. If it raises, the parameters have not changed.

        loss: such as `RecurrentLM.activity` returns.

        Raises DivergenceError if the loss or its gradient is not finite, what the loss raises, and with replicas
        ReplicaError as `Replicas.exchange` does, and ValueError for a batch of a single part.
        """
        value = self.estimate(loss)
        self.update()
        return value

    def estimate(self, loss: LossInParts, *, guard: Guard = nullcontext) -> float:
        """Writes the estimate to `p.grad` of the parameters that require gradients, and returns the loss.

        guard: makes a context that is entered while gradients are computed, such as `InterruptGate.open`.

        Raises as `step` does, and then leaves no gradients.
        """
        self.optimizer.zero_grad()
        seeds = torch.from_numpy(probe_seeds(self.seed, self.steps_taken, self.probes))
        replicas = self.replicas or Replicas.find_default()
        if replicas is not None:
            replicas.begin_step(self.steps_taken, self.digest)
        value, gradients = mean_gradient(loss, seeds, self.eps, replicas, guard)
        with deferred_interrupts():
            for parameter, gradient in zip(loss.parameters, gradients, strict=True):
                if parameter.requires_grad:
                    parameter.grad = gradient.to(parameter.dtype)
        return value

    def update(self) -> None:
        """Steps along the gradients that `estimate` has written. A Ctrl-C waits until the update is done."""
        with deferred_interrupts():
            self.optimizer.step()
            self.steps_taken += 1
            self.optimizer.zero_grad()

    def digest(self) -> int:
        """64 bits that tell the parameters from any that differ in one bit: what replicas compare."""
        return digest(*(p for group in self.optimizer.param_groups for p in group["params"]))

    def state_dict(self) -> dict[str, Any]:
        """torch's state of the optimizer, and the number of steps: saved with the model's, the run continues."""
        return {"activity": {"steps_taken": self.steps_taken}, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from a `state_dict`. Raises ValueError, changing nothing, if it is of something else."""
        own = state_dict.get("activity")
        if own is None:
            raise ValueError("this state is not of ActivityPerturbation, which is to continue from it")
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.steps_taken = int(own["steps_taken"])
