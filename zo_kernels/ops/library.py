"""The torch library `zo_kernels`, in which every op is registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("zo_kernels", "DEF")


def register(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Registers an op and returns it, as `torch.ops.zo_kernels` has it.

    Args:
        schema: the name, the arguments and the result, in torch's schema language. Arguments of type float must not
            have defaults: torch drops an argument that equals its default before it calls the implementation, and
            where a thread flushes subnormals one of them equals 0.
        implementation: computes on tensors of any device. It checks its arguments, asks
            `zo_kernels.backends.backend_for` for a backend, and tells autograd which tensors it wrote.
        fake: checks what can be checked without values and returns empty results, for meta and fake tensors.
    """
    name = _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"zo_kernels::{name}", fake, lib=_library)
    # The overload itself: choosing among the overloads of a name takes a tenth of the time of a call on a small tensor.
    return getattr(torch.ops.zo_kernels, name).default
