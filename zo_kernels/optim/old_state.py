"""Reads the state_dicts of version 0.1, which kept state of the parameters' size in flat tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..params.layout import Slot
from ..params.space import ParameterSpace
from ..philox import BLOCK_SIGNS


def convert_old_state(
    space: ParameterSpace, param_groups: list[dict[str, Any]], state_dict: dict[str, Any]
) -> dict[str, Any]:
    """The state_dict in its present form. Raises ValueError if it belongs to other parameters."""
    old = state_dict["zo_kernels"]
    if [tuple(slot) for slot in old["slots"]] != [(slot.offset, slot.numel) for slot in space.trained]:
        raise ValueError("this state belongs to parameters of other sizes or in another order")
    homes = _homes(space, old.get("spans"))
    spacings = old.get("grids") or [None] * len(param_groups)
    grids = {slot: spacing for group, spacing in zip(space.groups, spacings, strict=True) for slot in group}
    state: dict[int, dict[str, Any]] = {}
    seen: set[Slot] = set()
    index = 0
    for group in param_groups:
        for p in group["params"]:
            slot = space.slot_of(p)
            if slot not in seen:
                seen.add(slot)
                state[index] = {"offset": slot.offset, "numel": slot.numel, "grid": grids[slot]}
                if slot in homes:
                    sized = {**old["dense"], **({"theta": old["theta"]} if "theta" in old else {})}
                    state[index].update({name: _part(space, slot, homes[slot], x) for name, x in sized.items()})
            index += 1
    own = {key: old[key] for key in ("seed", "probes", "steps_taken", "mode", "transforms")} | {
        "common_grids": True,
        "dense": sorted(old["dense"]),
    }
    first, *others = state_dict["param_groups"]
    return {"state": state, "param_groups": [{**first, "zo_kernels": own}, *others]}


def _homes(space: ParameterSpace, spans: Any) -> dict[Slot, int]:
    """Where each parameter began in a flat tensor: at its offset, or one after the other if they were sharded."""
    if spans is None:
        return {slot: slot.offset for slot in space.trained}
    if [tuple(span) for span in spans] != [
        (slot.offset + space.start(slot), space.memory(slot).numel()) for slot in space.trained
    ]:
        raise ValueError("this state was saved with the parameters sharded otherwise: load it on as many processes")
    homes, end = {}, 0
    for slot, (number, numel) in zip(space.trained, spans, strict=True):
        homes[slot] = end + number % BLOCK_SIGNS
        end += -(-(number % BLOCK_SIGNS + numel) // BLOCK_SIGNS) * BLOCK_SIGNS
    return homes


def _part(space: ParameterSpace, slot: Slot, home: int, flat: Tensor) -> Tensor:
    memory = space.memory(slot)
    return flat[home : home + memory.numel()].view(memory.shape).clone()
