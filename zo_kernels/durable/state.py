"""The state of a loop: its model, its optimizer, torch's generators, and what else the script names."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UsageError
from ..optim import ZeroOrder
from ..optim.state import check_state
from ..run.checkpoint import pack

_OPTIMIZER, _OTHERS, _OWN, _RNG = "optimizer", "state", "own", "rng"


class _Part(NamedTuple):
    """How a part of the state is taken and put back."""

    take: Callable[[], Any]
    put_back: Callable[[Any], object]


class LoopState:
    """Takes the state of a loop between two steps, and restores it.

    others: objects of the script by name: with `state_dict` and `load_state_dict`, or torch.Generators. own: a dict of
    the script's own values, saved as it is.

    Raises UsageError for an object of another kind.
    """

    def __init__(self, model: Any, optimizer: ZeroOrder, others: Mapping[str, Any]) -> None:
        self.model, self.optimizer = model, optimizer
        self.own: dict[str, Any] = {}
        self._others = {name: _part(name, value) for name, value in others.items()}

    def names(self) -> list[str]:
        """The names of the script's objects."""
        return sorted(self._others)

    def weights(self) -> dict[str, Tensor]:
        """The model's state_dict. Raises UsageError if it has anything but tensors."""
        found = dict(self.model.state_dict())
        for name, x in found.items():
            if not isinstance(x, Tensor):
                raise UsageError(f"{name} in the model's state_dict is a {type(x).__name__}: only tensors can be saved")
        return found

    def take(self) -> dict[str, Any]:
        """All but the weights, as a checkpoint holds it. Raises UsageError if it can't hold a part."""
        state = {
            _OPTIMIZER: self.optimizer.state_dict(),
            _OTHERS: {name: part.take() for name, part in self._others.items()},
            _OWN: self.own,
            _RNG: _generators(),
        }
        for name, value in (*state[_OTHERS].items(), ("run.state", self.own)):
            try:
                pack(value, {})
            except TypeError as error:
                raise UsageError(f"{name} can't be saved: {error}") from error
        return state

    def restore(self, where: str, weights: Mapping[str, Tensor], state: Any) -> None:
        """Restores what `weights` and `take` returned.

        where: the folder, for messages. Raises UsageError, changing nothing, if it is the state of another model,
        another optimizer or other objects.
        """
        self._check_parts(where, state)
        self.restore_solver(where, weights, state)
        for name, part in self._others.items():
            part.put_back(state[_OTHERS][name])
        self.own.clear()
        self.own.update(state[_OWN])
        torch.set_rng_state(state[_RNG]["cpu"].cpu())
        of_gpus = state[_RNG].get("cuda", [])
        if torch.cuda.is_available() and len(of_gpus) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([each.cpu() for each in of_gpus])

    def restore_solver(self, where: str, weights: Mapping[str, Tensor], state: Any) -> None:
        """Restores the model and the optimizer alone, and raises as `restore` does."""
        check_model(where, weights, self.weights())
        try:
            check_state(self.optimizer, state[_OPTIMIZER])
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{where} does not fit this optimizer: {error}") from error
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state[_OPTIMIZER])

    def _check_parts(self, where: str, state: Any) -> None:
        if not isinstance(state, dict) or state.keys() != {_OPTIMIZER, _OTHERS, _OWN, _RNG}:
            raise UsageError(f"{where} has the state of another kind of run: give another folder")
        saved, given = set(state[_OTHERS]), set(self._others)
        if missing := sorted(saved - given):
            raise UsageError(f"{where} has the state of {', '.join(missing)}: give it to the run as before")
        if more := sorted(given - saved):
            raise UsageError(f"{where} has no state of {', '.join(more)}: leave it out, or give another folder")


def check_model(where: str, saved: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raises UsageError, naming the first difference, unless a model has the tensors of the run's model."""
    for name in dict.fromkeys((*saved, *given)):
        was, now = (_form(model.get(name)) for model in (saved, given))
        if was != now:
            raise UsageError(f"{where} is the run of another model: {name} is {was} there, and {now} here")


class PutBack:
    """Keeps torch's generator of the CPU as a step found it, for a step that is taken again draws nothing."""

    def __init__(self) -> None:
        self._step, self._found = -1, torch.empty(0)

    def note(self, step: int) -> None:
        """Notes the generator before a step is measured, or puts it back if that was begun before."""
        if step == self._step:
            self.put_back()
        else:
            self._step, self._found = step, torch.get_rng_state()

    def put_back(self) -> None:
        """Puts the generator back to where the step found it."""
        torch.set_rng_state(self._found)


def _generators() -> dict[str, Any]:
    """The states of torch's own generators. Those of GPUs, where they are in use."""
    found: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def _part(name: str, value: Any) -> _Part:
    if isinstance(value, torch.Generator):
        return _Part(value.get_state, lambda state: value.set_state(state.cpu()))
    if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
        return _Part(value.state_dict, lambda state: value.load_state_dict(copy.deepcopy(state)))
    raise UsageError(
        f"{name} is a {type(value).__name__}, without state_dict and load_state_dict: give an object that has them, or "
        "keep its values in run.state"
    )


def _form(x: Tensor | None) -> str:
    return "missing" if x is None else f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
