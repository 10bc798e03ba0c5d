"""What a zero-order optimizer's state_dict holds beside torch's own."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ..params.grid import Grid
from ..params.layout import Arena
from ..params.sharded import ShardedArena
from ..perturb import InPlace, Perturbation, Shadow


class Stateful(Protocol):
    """What is saved of an optimizer, and what that must fit. `ZeroOrder` describes the attributes."""

    seed: int
    probes: int
    steps_taken: int
    mode: str
    arena: Arena
    perturbation: Perturbation
    transform_state: dict[str, Tensor]
    dense_state: dict[str, Tensor]


def save_state(optimizer: Stateful) -> dict[str, Any]:
    """All that the next step depends on, beside the parameters and the groups' hyper-parameters."""
    theta = optimizer.perturbation
    state: dict[str, Any] = {
        "seed": optimizer.seed,
        "probes": optimizer.probes,
        "steps_taken": optimizer.steps_taken,
        "mode": optimizer.mode,
        "slots": [(slot.offset, slot.numel) for slot in optimizer.arena.slots],
        "transforms": dict(optimizer.transform_state),
        "dense": dict(optimizer.dense_state),
    }
    if isinstance(optimizer.arena, ShardedArena):
        state["spans"] = optimizer.arena.spans
    if isinstance(theta, InPlace):
        state["grids"] = [None if grid is None else grid.spacing for grid in theta.grids]
    elif isinstance(theta, Shadow):
        state["theta"] = theta.theta
    return state


def check_state(optimizer: Stateful, state: dict[str, Any] | None) -> dict[str, Any]:
    """The state, if it fits the optimizer. Raises ValueError if it does not."""
    if state is None:
        raise ValueError("this is not the state of a zo_kernels optimizer")
    slots = [(slot.offset, slot.numel) for slot in optimizer.arena.slots]
    if [tuple(slot) for slot in state["slots"]] != slots:
        raise ValueError("this state belongs to parameters of other sizes or in another order")
    spans = optimizer.arena.spans if isinstance(optimizer.arena, ShardedArena) else []
    sized = optimizer.dense_state or optimizer.mode == "shadow"
    if sized and [tuple(span) for span in state.get("spans", [])] != spans:
        raise ValueError("this state was saved with the parameters sharded otherwise: load it on as many processes")
    if state["mode"] != optimizer.mode:
        raise ValueError(
            f"this state was saved in mode {state['mode']!r}, but the optimizer has mode {optimizer.mode!r}"
        )
    for kind, mine in (("transforms", optimizer.transform_state), ("dense", optimizer.dense_state)):
        if state[kind].keys() != mine.keys():
            raise ValueError(f"this state was saved with other {kind}: build the optimizer with the same")
    return state


def load_state(optimizer: Stateful, state: dict[str, Any]) -> None:
    """Continues from a state that `check_state` has let pass."""
    theta = optimizer.perturbation
    optimizer.seed, optimizer.probes, optimizer.steps_taken = state["seed"], state["probes"], state["steps_taken"]
    optimizer.transform_state = {name: value.clone() for name, value in state["transforms"].items()}
    for name, value in optimizer.dense_state.items():
        value.copy_(state["dense"][name])
    if isinstance(theta, InPlace):
        dtype = optimizer.arena.dtype
        theta.grids = [None if spacing is None else Grid.of_spacing(spacing, dtype) for spacing in state["grids"]]
    elif isinstance(theta, Shadow):
        theta.theta.copy_(state["theta"])
    theta.forget_versions()
