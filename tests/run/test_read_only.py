"""A run folder that may only be read can be generated from, replayed, drawn and forked, and nothing is left in it."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from tests.run.files.small_run import train
from tests.run.files.watched import Watched


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_written(watched: Watched, root: Path, tmp_path: Path) -> None:
    run = root / "read"
    assert train(run, 8).code == 0
    before = content(run)
    ended, operations = watched.read(run, tmp_path, at=0, error=errno.EROFS, lasting=True)
    assert (ended.code, ended.err, operations) == (0, "", 0)
    assert content(run) == before
    assert {path.name for path in tmp_path.iterdir()} == {"fork", "state", "weights", "picture.png"}
    shutil.rmtree(run)
