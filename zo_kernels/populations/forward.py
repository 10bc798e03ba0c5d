"""The context of a forward pass of many members under torch.vmap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import multi_head_attention_forward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .rules import RULES


@contextmanager
def adapted(sizes: Sizes | None) -> Iterator[None]:
    """Context in which functions follow `RULES`. sizes: notes how large their results are."""
    has_fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, has_fast_path)
        torch.backends.mha.set_fastpath_enabled(False)  # one op for a whole layer, which vmap calls for each member
        if sizes is not None:
            stack.enter_context(sizes)
        stack.enter_context(_Rules())
        yield


class Sizes(TorchDispatchMode):
    """Notes the size of the largest result of an op, in bytes, of all members together."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result._is_view():
            self.largest = max(self.largest, result.numel() * result.element_size())
        return result


class _Rules(TorchFunctionMode):
    """Puts the functions of `RULES` in the place of torch's."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is multi_head_attention_forward:  # what it calls does not come here
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        return RULES.get(func, func)(*args, **kwargs)
