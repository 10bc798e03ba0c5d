"""The torch library `zo_kernels`, in which every op is registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("zo_kernels", "DEF")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Registers an op and returns it, as `torch.ops.zo_kernels` has it.

    Args:
        schema: the name, the arguments and the result, in torch's schema language. torch drops an argument that equals
            its default before it calls the implementation. That makes calls with the default distribution faster, but
            arguments of type float must not have defaults: a subnormal equals 0 in a thread that flushes them.
        implementation: computes on tensors of any device. It checks its arguments, asks
            `zo_kernels.backends.backend_for` for a backend, and tells autograd which tensors it wrote.
        fake: checks what can be checked without values and returns empty results, for meta and fake tensors.
    """
    name = _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"zo_kernels::{name}", fake, lib=_library)
    # The overload itself: choosing among the overloads of a name takes time in every call.
    return getattr(torch.ops.zo_kernels, name).default
