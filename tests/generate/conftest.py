"""Runs of one step, of every model, to generate from."""

import shutil
from pathlib import Path

import pytest

from zo_kernels.generate import LoadedRun, load_run
from zo_kernels.models import MODEL_NAMES, has_memory
from zo_kernels.train.__main__ import main as train

TINY = ["--embed-dim", "4", "--hidden-size", "8", "--num-heads", "2", "--batch-size", "2", "--probes", "2"]
MEMORY = ["--memory-slots", "5", "--memory-width", "3"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of each model; its symbols are a, b, c, d and |."""
    root = tmp_path_factory.mktemp("runs")
    for name in MODEL_NAMES:
        sizes = [*TINY, *MEMORY] if has_memory(name) else TINY
        assert train([*sizes, "--steps", "1", "--model", name, "--out", str(root / name)]) == 0
    return {name: root / name for name in MODEL_NAMES}


@pytest.fixture(params=MODEL_NAMES)
def run(request: pytest.FixtureRequest, folders: dict[str, Path]) -> LoadedRun:
    """A loaded run of each model in turn."""
    return load_run(folders[request.param])


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the LSTM's run folder, to be spoilt."""
    return Path(shutil.copytree(folders["lstm"], tmp_path / "run"))
