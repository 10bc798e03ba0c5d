"""What is known so far, in a file that a killed run leaves whole and the next one continues from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .steps import Record, Step

ROOT = Path(__file__).parents[2]

_SOURCES = ("zo_kernels", "csrc")


def fingerprint(root: Path = ROOT) -> str:
    """Of the sources of package and kernels, and of the compiled module: figures belong to one state of them."""
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(root)}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing, whatever ends the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".tmp")
    with beside.open("w") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


class Journal:
    """Records by step, and in folder/<name>.partial.json if there is a folder.

    key: what the records depend on (versions, the GPU, the sources). A file with another key is not continued; `news`
    then says what changed.
    """

    def __init__(self, folder: Path | None, name: str, key: dict[str, Any], *, anew: bool = False) -> None:
        self.path = None if folder is None else folder / f"{name}.partial.json"
        self.records: dict[str, Record] = {}
        self.news = ""
        self._key = key
        if self.path is None or not self.path.exists() or anew:
            return
        try:
            found = json.loads(self.path.read_text())
            records = {step: Record(**record) for step, record in found["records"].items()}
            before = dict(found["key"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is no journal of bench.gpu ({error}): delete it or pass --anew") from error
        changed = [name for name in {**before, **key} if before.get(name) != key.get(name)]
        if changed:
            self.news = "started anew, because of another " + " and ".join(changed)
        else:
            self.records = records
            self.news = f"continuing {self.path.name}: {sum(r.settled for r in records.values())} steps are done"

    def settled(self, name: str) -> bool:
        return name in self.records and self.records[name].settled

    def note(self, name: str, record: Record) -> None:
        self.records[name] = record
        if self.path is not None:
            records = {step: known.as_json() for step, known in self.records.items()}
            write_json(self.path, {"key": self._key, "records": records})

    def forget(self, steps: Sequence[Step]) -> None:
        """Makes these steps be done again."""
        for step in steps:
            self.records.pop(step.name, None)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
