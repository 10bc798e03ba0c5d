"""Keeps torch.compile out of a step, which moves parameters behind its back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


def not_compiled(method: Method) -> Method:
    """A method that torch.compile does not trace: a function that calls it gets a graph break there.

    As torch.compiler.disable, which would import torch._dynamo together with this module: that takes a second.
    """
    disabled: list[Callable[..., Any]] = []

    @wraps(method)
    def call(*args: Any, **options: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return method(*args, **options)
        if not disabled:
            disabled.append(torch.compiler.disable(method))
        return disabled[0](*args, **options)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]
