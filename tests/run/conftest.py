"""What the tests of the files of a run share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.files.watched import Watched

_MEMORY = Path("/dev/shm")  # where a sync costs nothing


@pytest.fixture(scope="session")
def root() -> Iterator[Path]:
    """The folder whose file operations are watched."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def watched(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with Watched(root, tmp_path_factory.mktemp("library")) as process:
        yield process
