"""Builds models by the names that the command line and config.json use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial

import torch

from ..extensions import call, entry_names, find_class
from .base import RecurrentLM
from .cells import MODELS
from .dnc import DNC
from .flashrnn.choice import CELLS
from .flashrnn.language_model import FlashLM
from .language import LanguageModel
from .memory import MemoryLM
from .paper_dnc import PaperDNC
from .series import SERIES_MODELS

_WITH_MEMORY: dict[str, type[MemoryLM]] = {"dnc": DNC, "paper-dnc": PaperDNC}

_ONE_LAYER: dict[str, int | bool] = {"num_layers": 1, "layer_norm": False, "residual": False}

MODEL_NAMES: tuple[str, ...] = (*MODELS, "slstm", *_WITH_MEMORY)
"""The names that `build_model` takes."""


def has_memory(name: str) -> bool:
    """Whether the model of that name takes memory_slots and memory_width."""
    return name in _WITH_MEMORY


def find_model(name: str) -> type[LanguageModel]:
    """Returns the class package.module:Class, or that of an entry point of the group zo_kernels.models.

    Raises ValueError for any other name, and for one that can't be imported or is no model.
    """
    found = find_class(name, LanguageModel, "zo_kernels.models")
    if found is None:
        known = [*MODEL_NAMES, *entry_names("zo_kernels.models")]
        raise ValueError(f"unknown model {name!r}: choose one of {', '.join(known)}")
    return found


def build_model(
    name: str,
    vocab_size: int,
    *,
    embed_dim: int,
    hidden_size: int,
    num_heads: int,
    num_layers: int = 1,
    layer_norm: bool = False,
    residual: bool = False,
    memory_slots: int | None = None,
    memory_width: int | None = None,
    reads_numbers: bool = False,
    flashrnn: bool = False,
    seed: int | None = None,
    device: torch.device | str | None = None,
) -> LanguageModel:
    """Builds the float32 model with a name in MODEL_NAMES, or one that `find_model` finds.

    The latter is called as `LSTM` is, with num_layers, layer_norm, residual, memory_slots and memory_width only if they
    are given.

    hidden_size: size of all heads together; for a DNC, of its controller.
    num_heads: number of independent heads of the recurrent layer, which must divide hidden_size; for a DNC, number of
        read heads.
    num_layers, layer_norm, residual: the layers of an LSTM, GRU, Elman model or sLSTM, as `RecurrentLM` has them. No
        other model takes them.
    memory_slots, memory_width: size of a DNC's memory. A DNC needs both; no other model takes them.
    reads_numbers: builds the `SeriesModel` of that name (LSTM, GRU or Elman), of vocab_size - 1 inputs.
    flashrnn: builds the `FlashLM` of that name (LSTM, GRU, Elman or sLSTM, which always is one).
    seed: seed of the initial parameters, which are then the same on every device and do not use torch's global random
        state; None uses that state.

    Raises ValueError if the name is unknown, a size is missing or not a positive integer, num_heads does not divide
    hidden_size, or a model is given what it does not take.
    """
    layers = {"num_layers": num_layers, "layer_norm": layer_norm, "residual": residual}
    memory = {"memory_slots": memory_slots, "memory_width": memory_width}
    given = {option: value for option, value in layers.items() if value != _ONE_LAYER[option]}
    given |= {option: size for option, size in memory.items() if size is not None}
    place = {"seed": seed, "device": device}
    if reads_numbers and name not in SERIES_MODELS:
        raise ValueError(f"a series of numbers is for the models {', '.join(SERIES_MODELS)}, not {name}")
    if flashrnn and (name not in CELLS or reads_numbers):
        raise ValueError(f"FlashRNN computes the models {', '.join(CELLS)} on texts, not {name} on this task")
    if name not in MODEL_NAMES:
        own = find_model(name)
        _refuse_unknown(name, given, inspect.signature(own).parameters)
        return call(name, own, vocab_size, embed_dim, hidden_size, num_heads, **given, **place)
    if has_memory(name):
        _refuse_unknown(name, given, memory)
        if memory_slots is None or memory_width is None:
            missing = next(option for option, size in memory.items() if size is None)
            raise ValueError(f"the model {name} has a memory: give {missing} too")
        return _WITH_MEMORY[name](
            vocab_size, embed_dim, hidden_size, memory_slots, memory_width, num_heads, seed=seed, device=device
        )
    _refuse_unknown(name, given, layers)
    if name == "slstm" or flashrnn:
        make: Callable[..., LanguageModel] = partial(FlashLM, cell=name)
    else:
        family: Mapping[str, type[RecurrentLM]] = SERIES_MODELS if reads_numbers else MODELS
        make = family[name]
    return make(
        vocab_size - reads_numbers,
        embed_dim,
        hidden_size,
        num_heads,
        num_layers=num_layers,
        layer_norm=layer_norm,
        residual=residual,
        seed=seed,
        device=device,
    )


def _refuse_unknown(name: str, given: Iterable[str], taken: Container[str]) -> None:
    for option in given:
        if option not in taken:
            what = "a single layer" if option in _ONE_LAYER else "no memory"
            raise ValueError(f"the model {name} has {what}: leave {option} out")
