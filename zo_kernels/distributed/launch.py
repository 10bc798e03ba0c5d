"""What a launcher tells its processes, in variables of the environment: torchrun, or one that sets the same."""

from __future__ import annotations

import ipaddress
import os
from typing import NamedTuple

from ..errors import UsageError

_LARGEST = 2**31 - 1


class Launch(NamedTuple):
    """The variables of a launch.

    rank, world_size: RANK and WORLD_SIZE. local_rank, local_world_size: those among the processes of this node, None if
    the launcher does not tell. address, port: where the processes meet. shares_store: whether the launcher itself runs
    the store there.
    """

    rank: int
    world_size: int
    local_rank: int | None
    local_world_size: int | None
    address: str
    port: int
    shares_store: bool

    @property
    def is_on_one_node(self) -> bool:
        """Whether the launcher says that all processes run on this node."""
        return self.local_world_size == self.world_size

    @property
    def has_loopback_address(self) -> bool:
        """Whether the address can be reached from this node only."""
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:  # another name
            return False


def read_launch() -> Launch | None:
    """Reads the variables. Returns None without RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT: nothing was launched.

    Raises UsageError, naming the variable, for a value that can't be.
    """
    if not all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return None
    world_size = _read_number("WORLD_SIZE", 1, _LARGEST)
    rank = _read_number("RANK", 0, world_size - 1)
    local_world_size = read_local_world_size()
    if local_world_size is not None and local_world_size > world_size:
        raise UsageError(
            f"LOCAL_WORLD_SIZE is {local_world_size}, but WORLD_SIZE only {world_size}: correct what the launcher sets"
        )
    address = os.environ["MASTER_ADDR"]
    if not address or address.split() != [address]:
        raise UsageError(f"MASTER_ADDR must be the name or the address of rank 0's node, not {address[:100]!r}")
    if address == "localhost":  # which may stand for two addresses
        address = "127.0.0.1"
    port = _read_number("MASTER_PORT", 1, 65535)
    shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Launch(rank, world_size, read_local_rank(), local_world_size, address, port, shares_store)


def is_launched() -> bool:
    """Whether this is one of several processes of a launcher. Raises UsageError as `read_launch` does."""
    launch = read_launch()
    return launch is not None and launch.world_size > 1


def read_local_rank() -> int | None:
    """LOCAL_RANK, the number of this process on its node; None if it is not set. Raises UsageError."""
    if "LOCAL_RANK" not in os.environ:
        return None
    local_world_size = read_local_world_size()
    return _read_number("LOCAL_RANK", 0, _LARGEST if local_world_size is None else local_world_size - 1)


def read_local_world_size() -> int | None:
    """LOCAL_WORLD_SIZE, the number of processes on this node; None if it is not set. Raises UsageError."""
    return _read_number("LOCAL_WORLD_SIZE", 1, _LARGEST) if "LOCAL_WORLD_SIZE" in os.environ else None


def _read_number(name: str, lowest: int, highest: int) -> int:
    text = os.environ[name]
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 10 else -1
    if not lowest <= number <= highest:
        limit = "" if highest == _LARGEST else f" and at most {highest}"
        raise UsageError(
            f"{name} must be a whole number of at least {lowest}{limit}, not {text[:100]!r}: correct what the launcher "
            "sets, or unset it"
        )
    return number
