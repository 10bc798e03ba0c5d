"""A context in which torch functions are called with perturbed copies in place of parameters."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ..params.layout import Slot
from ..params.space import ParameterSpace


class Source(Protocol):
    """Makes the copies: `zo_kernels.perturb.streamed.Streamed` describes its members."""

    space: ParameterSpace

    @property
    def slots(self) -> list[Slot]: ...
    def values(self, slot: Slot) -> Tensor: ...
    def rows(self, slot: Slot, numbers: Sequence[int]) -> Tensor | None: ...
    def warn_of_unused(self) -> None: ...


def _without_values() -> frozenset[Callable[..., Any]]:
    """Functions that ask a tensor for other things than its elements, or set them."""
    attributes = (
        "shape dtype device layout ndim itemsize nbytes requires_grad is_leaf grad grad_fn output_nr _version "
        "is_cpu is_cuda is_meta is_mps is_xpu is_sparse is_sparse_csr is_quantized is_mkldnn is_nested retains_grad"
    )
    methods = (
        "size stride dim ndimension numel nelement element_size storage_offset get_device __len__ is_contiguous "
        "is_floating_point is_complex is_signed is_pinned is_shared is_inference dim_order requires_grad_ "
        "register_hook register_post_accumulate_grad_hook retain_grad"
    )
    found = [getattr(Tensor, name).__get__ for name in attributes.split() if hasattr(Tensor, name)]
    found += [getattr(Tensor, name) for name in methods.split() if hasattr(Tensor, name)]
    found += [getattr(Tensor, name).__set__ for name in ("requires_grad", "grad")]
    found += [torch.numel, torch.is_floating_point, torch.is_complex, torch.is_signed, torch.is_inference]
    return frozenset(found)


_WITHOUT_VALUES = _without_values()
_OF_MEMORY = frozenset([Tensor.data_ptr, getattr(Tensor, "data").__set__, Tensor.set_, Tensor.share_memory_])  # noqa: B009

_ROWS_AT_MOST = 32
"""An embedding is perturbed row by row where at most one of so many rows is looked up: each row takes a while."""


class Swap(TorchFunctionMode):
    """Calls torch functions with perturbed copies. A parameter is known by its memory, so its views are too.

    The copy lives as long as the call, and what the call returns of it. Compiled functions run eagerly.

    Raises RuntimeError if a function writes a parameter, asks for its address, or takes a tensor that is partly in a
    parameter's memory.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source
        known = []
        for slot in source.slots:
            theta = source.space.memory(slot)
            if theta.numel():
                end = theta.data_ptr() + _extent(theta) * theta.element_size()
                known.append((theta.data_ptr(), end, slot, theta))
        self._known = sorted(known, key=lambda entry: entry[0])
        self._starts = [start for start, *_ in self._known]
        self._parts = WeakIdKeyDictionary()  # of tensors that functions returned and that share a copy's memory: slots

    def __enter__(self) -> Swap:
        with ExitStack() as stack:
            if "torch._dynamo" in sys.modules:  # else nothing was compiled, and importing it takes a second
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            super().__enter__()
            self._stance = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._stance.close()
        if exception[0] is None:
            self._source.warn_of_unused()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _WITHOUT_VALUES:
            return func(*args, **kwargs)
        if func is functional.embedding:
            looked_up = self._look_up(*args, **kwargs)
            if looked_up is not None:
                return looked_up
        copies: list[_Copy] = []
        args, kwargs = self._swap(tuple(args), copies), self._swap(kwargs, copies)
        if copies and func in _OF_MEMORY:
            raise _refusal(copies[0].slot, f"uses {func.__name__} of")
        result = func(*args, **kwargs)
        for copy in copies:
            if _version(copy.tensor) != copy.version:
                raise _refusal(copy.slot, "writes")
            for part in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(part, Tensor) and _storage(part) == _storage(copy.tensor):
                    self._parts[part] = copy.slot
        return result

    def _swap(self, value: Any, copies: list[_Copy]) -> Any:
        """An argument with copies in place of parameters. Adds these, and parts of earlier ones, to `copies`."""
        if isinstance(value, Tensor):
            return self._in_place_of(value, copies)
        if type(value) in (tuple, list):
            return type(value)([self._swap(part, copies) for part in value])
        if type(value) is dict:
            return {key: self._swap(part, copies) for key, part in value.items()}
        return value

    def _in_place_of(self, x: Tensor, copies: list[_Copy]) -> Tensor:
        found = self._find(x)
        if found is None:
            if self._parts and x in self._parts:
                copies.append(_Copy(self._parts[x], x, _version(x), is_whole=False))
            return x
        slot, theta = found
        copy = next((c.tensor for c in copies if c.slot is slot and c.is_whole), None)
        if copy is None:
            with torch.inference_mode(False):  # a tensor that counts its writes
                copy = self._source.values(slot)
            copies.append(_Copy(slot, copy, _version(copy), is_whole=True))
        if _is_like(x, theta):
            return copy
        if x.dtype != theta.dtype or copy.stride() != theta.stride():
            raise _refusal(slot, "uses another view of")
        return copy.as_strided(x.shape, x.stride(), (x.data_ptr() - theta.data_ptr()) // x.element_size())

    def _find(self, x: Tensor) -> tuple[Slot, Tensor] | None:
        """The parameter in whose memory x lies."""
        start = _address(x)
        if not start or not self._known:
            return None
        end = start + _extent(x) * x.element_size()
        number = max(bisect_right(self._starts, start) - 1, 0)
        for first, last, slot, theta in self._known[number : number + 2]:
            if first <= start and end <= last:
                return slot, theta
            if first < end and start < last:
                raise _refusal(slot, "uses a tensor that overlaps")
        return None

    def _look_up(
        self, indices: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None, *_: Any,
        **__: Any,
    ) -> Tensor | None:  # fmt: skip
        """The embeddings of a few rows of a large table, of which these alone are perturbed. None if all should be."""
        found = self._find(weight)
        if found is None or not _is_like(weight, found[1]) or max_norm is not None or not _address(indices):
            return None
        rows, places = indices.unique(return_inverse=True)
        if len(rows) * _ROWS_AT_MOST > len(weight) or int(rows[0]) < 0 or int(rows[-1]) >= len(weight):
            return None
        copies = self._source.rows(found[0], rows.tolist())
        return None if copies is None else functional.embedding(places, copies)


class _Copy(NamedTuple):
    """A perturbed copy of a parameter or, if not `is_whole`, a tensor in the memory of an earlier one."""

    slot: Slot
    tensor: Tensor
    version: int
    is_whole: bool


def _version(x: Tensor) -> int:
    """Changes if x is written. Inference tensors do not count that."""
    return 0 if x.is_inference() else x._version


def _storage(x: Tensor) -> int | None:
    """None for a tensor without memory of its own."""
    return None if _address(x) is None else x.untyped_storage().data_ptr()


def _is_like(x: Tensor, theta: Tensor) -> bool:
    return x.shape == theta.shape and x.stride() == theta.stride() and x.dtype == theta.dtype


def _extent(x: Tensor) -> int:
    """Number of elements from the first to the last in memory."""
    return 1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0


def _address(x: Tensor) -> int | None:
    """None for a tensor without memory of its own, such as one of torch.vmap."""
    try:
        return x.data_ptr()
    except (RuntimeError, NotImplementedError):
        return None


def _refusal(slot: Slot, what: str) -> RuntimeError:
    return RuntimeError(
        f"the closure {what} parameter {slot.name}, which mode='streamed' can't follow: use mode='shadow'"
    )
