"""Whether the processes of a launch were started alike, and on GPUs of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from ..errors import ProcessGroupError, UsageError, first_line, format_ranks
from .rendezvous import call_with_timeout, read_when_there
from .signed_store import SignedStore

Terms = Mapping[str, str]
"""What all ranks must have in common, by the names that an error gives them."""

_LAST_WORDS = 2.0
"""Seconds in which each of the others reads why rank 0 ends."""

_MOST_NAMED = 4
"""Differences that an error names."""


def agree(store: SignedStore, rank: int, world_size: int, terms: Terms, timeout: float) -> None:
    """Compares the terms of all ranks, through a store that they share.

    Raises UsageError, the same on every rank, if they differ: it names what differs, the values, and their ranks.
    Raises ProcessGroupError if a rank does not answer within `timeout` seconds.
    """
    _compare(store.under("terms"), rank, world_size, terms, timeout, describe_differences)


def take_own_gpus(store: SignedStore, rank: int, world_size: int, gpu: str, timeout: float) -> None:
    """Compares the GPUs of all ranks, by names that differ between any two of them; "" is none.

    Raises UsageError, the same on every rank, if two ranks have one GPU or a rank has none: NCCL would hang, or fail
    with pages of text. Raises ProcessGroupError if a rank does not answer within `timeout` seconds.
    """
    _compare(store.under("gpus"), rank, world_size, {"gpu": gpu}, timeout, describe_shared_gpus)


def _compare(
    store: SignedStore,
    rank: int,
    world_size: int,
    terms: Terms,
    timeout: float,
    judge: Callable[[Sequence[Terms]], str],
) -> None:
    """Hands the terms of all ranks to `judge`, on rank 0. All ranks raise UsageError with what it says, unless ""."""
    deadline = time.monotonic() + timeout

    def compare() -> str:
        if rank != 0:
            store.set(str(rank), json.dumps(dict(terms)))
            said = read_when_there(store, "verdict", deadline).decode()
            store.set(f"heard/{rank}", "")
            return said
        others = [_read_terms(read_when_there(store, str(other), deadline)) for other in range(1, world_size)]
        verdict = judge([terms, *others])
        store.set("verdict", verdict)
        if verdict:
            with suppress(TimeoutError):  # this process may hold the store, and is about to end
                for other in range(1, world_size):
                    read_when_there(store, f"heard/{other}", time.monotonic() + _LAST_WORDS)
        return verdict

    try:
        verdict = call_with_timeout(compare, 2 * timeout)
    except ProcessGroupError:
        raise
    except (RuntimeError, TimeoutError, ValueError, MemoryError) as error:  # all that torch's clients raise
        raise ProcessGroupError(
            f"the ranks could not compare their flags in {timeout:g} s ({first_line(error)}): see the output of each"
        ) from error
    if verdict:
        raise UsageError(verdict)


def describe_shared_gpus(terms: Sequence[Terms]) -> str:
    """Returns a sentence about the first ranks 0, 1, 2, ... without a GPU of their own; "" if each has one."""
    ranks: dict[str, list[int]] = {}
    for rank, each in enumerate(terms):
        ranks.setdefault(each.get("gpu", ""), []).append(rank)
    for gpu, at in ranks.items():
        if not gpu or len(at) > 1:
            finds = "find" if len(at) > 1 else "finds"
            which = f"share the GPU {gpu[:100]}" if gpu else f"{finds} no GPU of the number LOCAL_RANK"
            return (
                f"NCCL needs a GPU for each process, but {format_ranks(at)} {which}: start one for each GPU, or "
                "all on the CPU, where the group is gloo's"
            )
    return ""


def describe_differences(terms: Sequence[Terms]) -> str:
    """Returns a sentence about what differs between the terms of ranks 0, 1, 2, ...; "" if nothing does."""
    names = list(dict.fromkeys(name for each in terms for name in each))
    differing = [name for name in names if len({each.get(name) for each in terms}) > 1]
    known_to_all = [name for name in differing if all(name in each for each in terms)]
    differing = known_to_all or differing  # some lack a name because of another difference, if there is one
    if not differing:
        return ""
    found = []
    for name in differing[:_MOST_NAMED]:
        ranks: dict[str, list[int]] = {}
        for rank, each in enumerate(terms):
            ranks.setdefault(each.get(name, "unknown")[:200], []).append(rank)
        found.append(f"{name} is " + " and ".join(f"{value} on {format_ranks(at)}" for value, at in ranks.items()))
    more = f"; {len(differing) - _MOST_NAMED} more differ" if len(differing) > _MOST_NAMED else ""
    return f"the processes must be started alike, but {'; '.join(found)}{more}"


def _read_terms(content: bytes) -> Terms:
    """Raises ProcessGroupError for anything else than terms."""
    try:
        terms = json.loads(content)
    except (ValueError, RecursionError):
        terms = None
    if not isinstance(terms, dict) or not all(isinstance(value, str) for value in terms.values()):
        raise ProcessGroupError("a rank sent something else than its flags: use one version of zo_kernels everywhere")
    return terms
