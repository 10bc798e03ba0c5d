"""Batches of any form: cut into micro-batches along the first dimension of their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """The tensors in a batch: itself, or those in tuples, lists and mappings."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (tuple, list)):
        for item in batch:
            yield from tensors_of(item)
    elif isinstance(batch, Mapping):
        yield from tensors_of(list(batch.values()))


def count_rows(batch: Any) -> int:
    """The size of the first dimension of the batch's tensors. Raises ValueError if they do not have one in common."""
    sizes = {len(x) for x in tensors_of(batch) if x.dim() > 0}
    if len(sizes) != 1:
        found = f"have {sorted(sizes)} rows" if sizes else "are missing"
        raise ValueError(f"micro-batches need tensors of as many rows each, but those of the batch {found}")
    return sizes.pop()


def split_rows(batch: Any, size: int) -> list[Any]:
    """Micro-batches of at most `size` rows, in order. Tensors are views. Mappings become dicts."""
    rows = count_rows(batch)
    return [
        _map(batch, lambda x, first=first: x[first : first + size])  # type: ignore[misc]
        for first in range(0, rows, size)
    ]


def _map(batch: Any, cut: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return cut(batch) if batch.dim() > 0 else batch
    if isinstance(batch, (tuple, list)):
        items = [_map(item, cut) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if isinstance(batch, Mapping):
        return {key: _map(value, cut) for key, value in batch.items()}
    return batch
