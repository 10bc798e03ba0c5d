"""A store that anybody may write to, but whose entries are believed only if their writer knows the secret.

torch's stores ask for no password: whoever reaches the port of a TCPStore can read and replace all that is in it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from datetime import timedelta
from typing import cast

from torch.distributed import Store

from ..errors import ProcessGroupError
from .secret import VARIABLE

_SIGNATURE = hashlib.sha256().digest_size


class SignedStore(Store):
    """Signs what is set in another store, and refuses to read what bears no valid signature.

    A signature is an HMAC-SHA256 of the key and the value, so an entry is worth nothing under another key. Keys are
    signed with the prefixes of `under`. They begin with the name of a round, which is never used again. Numbers that
    `add` counts are not signed: torch alone uses them, to wait for others.

    name: What the store is called in errors. It raises ProcessGroupError.

    Keep a reference for as long as torch uses the store, for torch keeps none to an object of Python.
    """

    def __init__(self, store: Store, secret: bytes, name: str, prefix: str = "") -> None:
        super().__init__()
        self._store, self._secret, self._name, self._prefix = store, secret, name, prefix

    def under(self, prefix: str) -> SignedStore:
        """Returns the part of this store whose keys begin with a prefix and a slash."""
        return SignedStore(self._store, self._secret, self._name, f"{self._prefix}{prefix}/")

    def set(self, key: str, value: str | bytes) -> None:
        """Sets an entry. torch takes bytes, too, although it declares texts."""
        key = self._prefix + key
        self._store.set(key, cast("str", self._sign(key, value)))

    def get(self, key: str) -> bytes:
        """Returns an entry, once it is there."""
        key = self._prefix + key
        return self._open(key, self._store.get(key))

    def compare_set(self, key: str, expected: str | bytes, desired: str | bytes) -> bytes:
        """Sets an entry if it is `expected`, where "" is one that is not there. Returns what it is then."""
        key = self._prefix + key
        before = self._sign(key, expected) if expected else b""
        after = self._sign(key, desired)
        return self._open(key, self._store.compare_set(key, cast("str", before), cast("str", after)))

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all of these entries are there."""
        return self._store.check([self._prefix + key for key in keys])

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Waits until all of these entries are there."""
        self._store.wait([self._prefix + key for key in keys], *([] if timeout is None else [timeout]))

    def add(self, key: str, amount: int) -> int:
        """Adds to a number, which is not signed."""
        return self._store.add(self._prefix + key, amount)

    def delete_key(self, key: str) -> bool:
        """Removes an entry. Returns whether it was there."""
        return self._store.delete_key(self._prefix + key)

    def _sign(self, key: str, value: str | bytes) -> bytes:
        content = value.encode() if isinstance(value, str) else bytes(value)
        return self._signature(key, content) + content

    def _open(self, key: str, signed: bytes) -> bytes:
        signature, content = signed[:_SIGNATURE], signed[_SIGNATURE:]
        if not hmac.compare_digest(signature, self._signature(key, content)):
            raise ProcessGroupError(
                f"an entry of {self._name} was not written with this rank's secret ({key.rsplit('/', 1)[-1][:50]!r}): "
                f"set {VARIABLE} to the same text on all nodes, unless a foreign program writes there"
            )
        return content

    def _signature(self, key: str, content: bytes) -> bytes:
        name = key.encode(errors="surrogateescape")
        message = len(name).to_bytes(8, "little") + name + content  # the length tells where the key ends
        return hmac.digest(self._secret, message, "sha256")
