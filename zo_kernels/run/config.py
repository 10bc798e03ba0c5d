"""config.json: the flags of a run by their names, and the version of the format of its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError

FORMAT = 1
"""Version of the format of run folders. Folders of version 0.1 name none, and the journal has a version of its own.

To be raised in each release that adds a field, or writes anything else that the releases before can't read.
"""

CONFIG_LIMIT = 1 << 20
"""Bytes that config.json may have."""

_RENAMED = {"gaf": "max_cosine_distance", "shard": "split", "heal": "repair"}
"""Fields of version 0.1, whose runs are still read, and their names now."""

_ADDED: dict[str, Any] = {
    "eval_batch_size": None,
    "eval_tokens": None,
    "allow_other_arithmetic": False,
    "segment_length": None,
    "validation_data": None,
    "parts": None,
    "stateful": False,
    "input": None,
    "target": None,
    "allow_import": False,
    "num_layers": 1,
    "layer_norm": False,
    "residual": False,
    "keep": None,
    "patience": None,
    "forward": "auto",
    "credit_length": None,
    "local_gradient": False,
}
"""Fields that version 0.1 did not have, and the values that mean what it did."""


def as_text(values: Mapping[str, Any]) -> str:
    """The text of config.json with these fields."""
    return json.dumps({"format": FORMAT, **values}, indent=2, default=str) + "\n"


def read_values(text: str, name: str) -> dict[str, Any]:
    """The fields of config.json by their present names, with the defaults of those that an older version lacked.

    name: what the text is called in errors.

    Raises UsageError if it is not a JSON object, or of a newer version.
    """
    try:
        values: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{name} is not what a run writes: it holds {text.strip()[:40]!r} and not an object")
    version = values.pop("format", 0)
    if type(version) is not int or version < 0:
        raise UsageError(f"{name} is not the config of a run: its format is {repr(version)[:40]}, and not a number")
    if version > FORMAT:
        raise UsageError(
            f"{name} has format {version}, of a newer version of zo_kernels than this one, which reads formats up to "
            f"{FORMAT}: install the newer one"
        )
    for old in _RENAMED.keys() & values.keys():
        values[_RENAMED[old]] = values.pop(old)
    return {**_ADDED, **values}
