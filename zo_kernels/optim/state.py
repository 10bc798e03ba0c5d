"""What a zero-order optimizer's state_dict holds, in the form that torch's tools take: state by parameter.

Version 0.1 kept state of the parameters' size in flat tensors under a key of its own. Its state_dicts are read, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor

from ..params.layout import Slot, is_dtensor
from ..params.space import ParameterSpace
from ..perturb import Perturbation
from .dense import DenseRule
from .old_state import convert_old_state

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

OWN = "zo_kernels"
"""Key, in the first parameter group of a state_dict, of what belongs to the optimizer as a whole."""


class Stateful(Protocol):
    """What is saved of an optimizer, and what that must fit. `ZeroOrder` describes the attributes."""

    seed: int
    probes: int
    steps_taken: int
    space: ParameterSpace
    perturbation: Perturbation
    transform_state: dict[str, Tensor]
    dense: DenseRule | None
    param_groups: list[dict[str, Any]]
    _dense_state: dict[Slot, dict[str, Tensor]]


@dataclass(frozen=True)
class SavedState:
    """A state_dict that fits the optimizer: torch's part of it, the optimizer's own, and that of each parameter."""

    torch_part: dict[str, Any]
    own: dict[str, Any]
    by_parameter: dict[Tensor, dict[str, Any]]


def save_state(optimizer: Stateful, torch_part: dict[str, Any]) -> dict[str, Any]:
    """All that the next step depends on beside the parameters, as a state_dict. torch_part: that of torch."""
    theta = optimizer.perturbation
    state: dict[int, dict[str, Any]] = {}
    seen: set[Slot] = set()
    for index, p in _indexed(optimizer, torch_part):
        slot = optimizer.space.slot_of(p)
        if slot in seen:
            continue
        seen.add(slot)
        state[index] = {"offset": slot.offset, "numel": slot.numel, "grid": theta.spacing(slot)}
        sized = dict(optimizer._dense_state.get(slot, {}))
        if slot in theta.shadow.theta:
            sized["theta"] = theta.shadow.theta[slot]
        state[index].update({name: _like_parameter(p, x) for name, x in sized.items()})
    own = {
        "seed": optimizer.seed,
        "probes": optimizer.probes,
        "steps_taken": optimizer.steps_taken,
        "mode": theta.requested_mode,
        "streams_16_bits": theta.streams_16_bits,
        "common_grids": theta.in_place.is_common,
        "transforms": dict(optimizer.transform_state),
        "dense": _dense_names(optimizer),
    }
    first, *others = torch_part["param_groups"]
    return {**torch_part, "state": state, "param_groups": [{**first, OWN: own}, *others]}


def check_state(optimizer: Stateful, state_dict: dict[str, Any]) -> SavedState:
    """Returns the state_dict's parts, if it fits the optimizer. Raises ValueError if it does not."""
    if OWN in state_dict:
        state_dict = convert_old_state(optimizer.space, optimizer.param_groups, state_dict)
    groups = state_dict.get("param_groups") or [{}]
    if OWN not in groups[0]:
        raise ValueError("this is not the state of a zo_kernels optimizer")
    own = groups[0][OWN]
    plain = [{key: value for key, value in group.items() if key != OWN} for group in groups]
    others = {key: value for key, value in state_dict.items() if key not in ("state", "param_groups")}
    by_parameter = _by_parameter(optimizer, state_dict["state"], groups)
    theta = optimizer.perturbation
    mine, saved = theta.requested_mode, own["mode"]
    is_streamed = saved == "streamed" or own.get("streams_16_bits", False)
    is_shadowed = any("theta" in s for s in by_parameter.values())
    fits = mine == "auto" or (
        saved in ("auto", mine) and (mine == "shadow" or not is_shadowed) and (mine == "streamed" or not is_streamed)
    )
    if not fits or (is_streamed and optimizer.space.shards is not None):
        raise ValueError(f"this state was saved in mode {saved!r}, but the optimizer has mode {mine!r}")
    if own["transforms"].keys() != optimizer.transform_state.keys():
        raise ValueError("this state was saved with other transforms: build the optimizer with the same")
    if list(own["dense"]) != _dense_names(optimizer):
        raise ValueError("this state was saved with another dense rule: build the optimizer with the same")
    return SavedState({"state": {}, "param_groups": plain, **others}, own, by_parameter)


def load_state(optimizer: Stateful, saved: SavedState) -> None:
    """Continues from a state that `check_state` has let pass."""
    own, theta, space = saved.own, optimizer.perturbation, optimizer.space
    optimizer.seed, optimizer.probes, optimizer.steps_taken = own["seed"], own["probes"], own["steps_taken"]
    optimizer.transform_state = {name: value.clone() for name, value in own["transforms"].items()}
    theta.renumber({p: int(state["offset"]) for p, state in saved.by_parameter.items()})
    theta.in_place.is_common = own["common_grids"]
    if theta.requested_mode == "auto":
        theta.requested_mode = own["mode"]
        theta.streams_16_bits = own.get("streams_16_bits", False)
    spacings: dict[Slot, float | None] = {}
    thetas: dict[Slot, Tensor] = {}
    optimizer._dense_state = {}
    for p, state in saved.by_parameter.items():
        slot = space.slot_of(p)
        spacings[slot] = state["grid"]
        sized = {name: _local(p, x) for name, x in state.items() if isinstance(x, Tensor)}
        if "theta" in sized:
            thetas[slot] = sized.pop("theta")
        if sized:
            optimizer._dense_state[slot] = {name: x.clone() for name, x in sized.items()}
    theta.load(spacings, thetas)


def _dense_names(optimizer: Stateful) -> list[str]:
    """Names of the tensors that the dense rule keeps for each parameter."""
    return [] if optimizer.dense is None else sorted(optimizer.dense.init(torch.zeros(1)))


def _indexed(optimizer: Stateful, state_dict: dict[str, Any]) -> Iterator[tuple[Any, Tensor]]:
    """The keys of the parameters in a state_dict, and the optimizer's parameters."""
    for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        yield from zip(saved["params"], group["params"], strict=True)


def _by_parameter(
    optimizer: Stateful, state: dict[Any, dict[str, Any]], groups: list[dict[str, Any]]
) -> dict[Tensor, dict[str, Any]]:
    misfit = ValueError("this state belongs to parameters of other sizes or in another order")
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in optimizer.param_groups]:
        raise misfit
    found = {p: state[index] for index, p in _indexed(optimizer, {"param_groups": groups}) if index in state}
    for p, saved in found.items():
        if saved["numel"] != p.numel():
            raise misfit
        for name, x in saved.items():
            if isinstance(x, Tensor) and _local(p, x).numel() != optimizer.space.memory_of(p).numel():
                raise ValueError(
                    f"this state was saved with the parameters sharded otherwise ({name} has {_local(p, x).numel()} "
                    "elements): load it on as many processes"
                )
    if {optimizer.space.slot_of(p) for p in found} != set(optimizer.space.slots):
        raise misfit
    return found


def _like_parameter(p: Tensor, x: Tensor) -> Tensor:
    """State of a sharded parameter as a DTensor, which tools for checkpoints can put together and shard otherwise."""
    if not is_dtensor(p):
        return x
    from torch.distributed import tensor

    whole = cast("DTensor", p)
    return tensor.DTensor.from_local(
        x, whole.device_mesh, whole.placements, run_check=False, shape=whole.shape, stride=whole.stride()
    )


def _local(p: Tensor, x: Tensor) -> Tensor:
    """This process's part of saved state."""
    if not is_dtensor(x):
        return x
    whole, saved = cast("DTensor", p), cast("DTensor", x)
    return saved.redistribute(whole.device_mesh, whole.placements).to_local()
