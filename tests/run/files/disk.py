"""What a disk holds after a kill or a power cut, at any moment of a process whose file operations were logged."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

_RECORD = struct.Struct("=ciiiiqqq")

State = Mapping[str, "bytes | None"]
"""The content of each file by its path below the root; None for a folder."""


class Operation(NamedTuple):
    """kind: o(pen), c(lose), w(rite), t(runcate), s(ync), r(ename), u(nlink), m(kdir)."""

    kind: str
    descriptor: int
    flags: int
    path: str
    other: str
    offset: int
    data: bytes
    inode: int


def read_log(log: Path, root: Path) -> list[Operation]:
    """The operations that operations.c logged below a folder, with paths relative to it."""
    data, at, found = log.read_bytes(), 0, []

    def take(count: int) -> bytes:
        nonlocal at
        at += count
        return data[at - count : at]

    def path(count: int) -> str:
        return os.path.relpath(take(count).decode(), root) if count else ""

    while at < len(data):
        kind, descriptor, flags, path_bytes, other_bytes, offset, count, inode = _RECORD.unpack(take(_RECORD.size))
        paths = path(path_bytes), path(other_bytes)
        found.append(Operation(kind.decode(), descriptor, flags, *paths, offset, take(count), inode))
    return found


@dataclass(eq=False)
class _File:
    inode: int
    live: bytearray = field(default_factory=bytearray)
    synced: bytes = b""


@dataclass(eq=False)
class _Folder:
    live: dict[str, _File | _Folder] = field(default_factory=dict)
    synced: dict[str, _File | _Folder] = field(default_factory=dict)


class Disk:
    """A folder, empty at first, to which logged operations are applied."""

    def __init__(self) -> None:
        self._root = _Folder()
        self._open: dict[int, _File | _Folder] = {}

    def apply(self, operation: Operation) -> None:
        """Applies one operation."""
        kind, descriptor = operation.kind, operation.descriptor
        if kind == "o":
            self._open[descriptor] = self._opened(operation)
        elif kind == "c":
            del self._open[descriptor]
        elif kind == "m":
            folder, name = self._place(operation.path)
            folder.live[name] = _Folder()
        elif kind == "u":
            folder, name = self._place(operation.path)
            del folder.live[name]
        elif kind == "r":
            self._rename(operation.path, operation.other)
        elif kind == "s":
            target = self._open[descriptor]
            if isinstance(target, _File):
                target.synced = bytes(target.live)
            else:
                target.synced = dict(target.live)
        else:
            file = self._open[descriptor]
            assert isinstance(file, _File)
            size = operation.offset if kind == "t" else max(len(file.live), operation.offset)
            del file.live[size:]
            file.live.extend(bytes(size - len(file.live)))
            file.live[operation.offset : operation.offset + len(operation.data)] = operation.data

    def after_kill(self) -> State:
        """All that was done: a kill loses nothing."""
        return dict(_walk(self._root, "", lambda folder: folder.live, lambda file: bytes(file.live)))

    def after_power_cut(self) -> dict[str, State]:
        """What can be left, by the name of the case: only what was synced, or more names than contents."""
        cases = {
            "nothing unsynced": (lambda folder: folder.synced, lambda file: file.synced),
            "all names": (lambda folder: folder.live, lambda file: file.synced),
            "all names and sizes": (
                lambda folder: folder.live,
                lambda file: file.synced[: len(file.live)].ljust(len(file.live), b"\0"),
            ),
        }
        return {case: dict(_walk(self._root, "", *parts)) for case, parts in cases.items()}

    def _opened(self, operation: Operation) -> _File | _Folder:
        folder, name = self._place(operation.path)
        if operation.path == ".":
            return self._root
        found = folder.live.get(name)
        if isinstance(found, _Folder):
            return found
        if found is None or found.inode != operation.inode:  # new, or renamed by an operation that was not seen
            for other, file in folder.live.items():
                if isinstance(file, _File) and file.inode == operation.inode:
                    del folder.live[other]
                    folder.live[name] = found = file
                    break
            else:
                assert found is None
                folder.live[name] = found = _File(operation.inode)
        if operation.flags & os.O_TRUNC:
            found.live.clear()
        return found

    def _rename(self, old: str, new: str) -> None:
        folder, name = self._place(old)
        moved = folder.live.pop(name)
        folder, name = self._place(new)
        folder.live[name] = moved

    def _place(self, path: str) -> tuple[_Folder, str]:
        *folders, name = path.split("/")
        at = self._root
        for folder in folders:
            child = at.live[folder]
            assert isinstance(child, _Folder)
            at = child
        return at, name


def _walk(folder: _Folder, prefix: str, names, content) -> Iterator[tuple[str, bytes | None]]:  # type: ignore[no-untyped-def]
    for name, child in sorted(names(folder).items()):
        if isinstance(child, _Folder):
            yield prefix + name, None
            yield from _walk(child, f"{prefix}{name}/", names, content)
        elif not name.endswith("-shm"):  # SQLite's shared memory: made anew after a kill
            yield prefix + name, content(child)


def lay_out(state: State, root: Path) -> None:
    """Writes a state to an empty folder."""
    for path, content in state.items():
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)
