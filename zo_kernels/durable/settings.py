"""config.json of a loop's run: how its optimizer was built, and which function builds it again."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backends import backend_for
from ..backends.cpu import _C
from ..errors import UsageError
from ..extensions import is_import
from ..optim import ZeroOrder
from ..optim.groups import hyper_parameters
from ..run.arithmetic import KERNEL_VERSION, MEMORY_KERNEL_VERSION, Arithmetic, kernel_version, package_version
from ..run.config import CONFIG_LIMIT, as_text, read_values
from ..run.files import read_text
from ..transforms import Transform

_NOT_COMPARED = ("loop", "model", "build")
"""What a script may change from one start to the next: names alone."""
_IN_ROWS = ("lr", "eps", "weight_decay", "maximize")
"""What the journal has of each step."""

Settings = dict[str, Any]


def settings_of(model: object, optimizer: ZeroOrder, build: str | None) -> Settings:
    """What config.json says of a loop: values that JSON can hold, the same whenever a script builds the same."""
    groups = []
    for group in optimizer.param_groups:
        hyper = hyper_parameters(group)
        numbers = {"lr": hyper.lr, "eps": hyper.eps, "weight_decay": hyper.weight_decay, "maximize": hyper.sign < 0}
        groups.append({**numbers, "grid": group["grid"], "tensors": len(group["params"])})
    return {
        "loop": True,
        "model": type(model).__name__,
        "build": build,
        "probes": optimizer.probes,
        **(groups[0] if len(groups) == 1 else {"groups": groups}),
        "estimator": describe(optimizer.estimator),
        "distribution": optimizer.distribution,
        "transforms": describe(optimizer.transform),
        "dense": describe(optimizer.dense),
        "max_cosine_distance": optimizer.max_cosine_distance,
        "mode": optimizer.perturbation.requested_mode,
        "seed": optimizer.seed,
    }


def describe(value: Any) -> str | None:
    """Says how an object was built: its class or function, and the values that it holds. None stays None."""
    return None if value is None else _describe(value)


def check_settings(where: str, stored: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises UsageError, naming the difference, unless an optimizer is built as that of the run was."""
    for name in dict.fromkeys((*stored, *given)):
        was, now = stored.get(name), given.get(name)
        if name not in _NOT_COMPARED and was != now:
            if name == "groups" and was and now and len(was) == len(now):
                number, was, now = next((i, a, b) for i, (a, b) in enumerate(zip(was, now, strict=True)) if a != b)
                key = next(key for key in {**was, **now} if was.get(key) != now.get(key))
                name, was, now = f"{key} of group {number}", was.get(key), now.get(key)
            raise UsageError(
                f"{where} is a run whose optimizer has {name} {was}, not {now}: build it as before, or give another "
                "folder"
            )


def without_rows(settings: Settings) -> Settings:
    """The settings without what the journal has of each step, so that a schedule may have changed it."""
    kept = {name: value for name, value in settings.items() if name not in _IN_ROWS}
    if "groups" in kept:
        kept["groups"] = [without_rows(group) for group in kept["groups"]]
    return kept


def as_config(settings: Settings) -> str:
    """The text of config.json."""
    return as_text(settings)


def read_settings(run: Path) -> Settings:
    """Reads config.json of a loop's run. Raises UsageError if it can't be read, or is that of another kind of run."""
    path = run / "config.json"
    try:
        text = read_text(path, CONFIG_LIMIT)
    except OSError as error:
        raise UsageError(f"{run} is not the folder of a run: can't read {path.name}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error})") from error
    found = read_values(text, str(path))
    if found.get("loop") is not True:
        raise UsageError(f"{run} is a run of python -m zo_kernels.train: continue it with --resume")
    return {name: found[name] for name in json.loads(text) if name in found}


def is_loop(run: Path) -> bool:
    """Whether a folder is that of a loop's run, as far as it can be read."""
    try:
        return json.loads(read_text(run / "config.json", CONFIG_LIMIT)).get("loop") is True
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def name_of_build(build: str | Callable[[], Any] | None) -> str | None:
    """The name package.module:function under which `zo_kernels.replay` finds a function again.

    Of a function of a script, the module is the script's name. Raises UsageError for one that can't be found by a name.
    """
    if build is None:
        return None
    if not isinstance(build, str):
        module, main = getattr(build, "__module__", ""), sys.modules["__main__"]
        if module == "__main__":
            spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
            module = spec.name if spec is not None else Path(file).stem if file else ""
        build = f"{module}:{getattr(build, '__qualname__', '')}"
    if not is_import(build):
        raise UsageError(
            f"build must be a function of a module or its name, such as 'package.module:build', not {build!r}"
        )
    return build


def arithmetic_of(optimizer: ZeroOrder) -> Arithmetic:
    """What decides about the bits of a loop's losses, as far as the optimizer can tell."""
    device = optimizer.space.parameters[0].device
    backend = backend_for(device.type)
    if device.type == "cuda":
        isa, version = "sm_{}{}".format(*torch.cuda.get_device_capability(device)), KERNEL_VERSION
    else:
        isa, version = torch.backends.cpu.get_cpu_capability().lower(), KERNEL_VERSION
        if backend.name == "cpu" and _C is not None:
            active = _C.active_isa()
            isa, version = f"{isa}, {active} in kernels", kernel_version(active)
    kernels = f"kernel {version}, memory kernel {MEMORY_KERNEL_VERSION}"  # which of them computes, the loss decides
    return {
        "backend": backend.name,
        "isa": isa,
        "precision": torch.get_float32_matmul_precision(),
        "forward": f"torch {torch.__version__}, {kernels}",
        "threads": str(torch.get_num_threads()),
        "zo_kernels": package_version(),
    }


def _describe(value: Any) -> str:
    if isinstance(value, Transform):
        return _describe(value.update)
    if isinstance(value, partial):
        options = [f"{name}={_describe(x)}" for name, x in value.keywords.items()]
        return f"{_describe(value.func)}({', '.join([*map(_describe, value.args), *options])})"
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_describe, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_describe(k)}: {_describe(v)}' for k, v in value.items())}}}"
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    held = getattr(value, "__dict__", {})
    return f"{_describe(type(value))}({', '.join(f'{name}={_describe(x)}' for name, x in held.items())})"
