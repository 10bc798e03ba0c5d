"""Runs of one step, of every cell, to generate from."""

import shutil
from pathlib import Path

import pytest

from zo_kernels.generate import LoadedRun, load_run
from zo_kernels.models import MODELS
from zo_kernels.train.__main__ import main as train

TINY = ["--embed-dim", "4", "--hidden-size", "8", "--num-heads", "2", "--batch-size", "2", "--probes", "2"]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run folder of each cell; its symbols are a, b, c, d and |."""
    root = tmp_path_factory.mktemp("runs")
    for cell in MODELS:
        assert train([*TINY, "--steps", "1", "--cell", cell, "--out", str(root / cell)]) == 0
    return {cell: root / cell for cell in MODELS}


@pytest.fixture(params=list(MODELS))
def run(request: pytest.FixtureRequest, folders: dict[str, Path]) -> LoadedRun:
    """A loaded run of each cell in turn."""
    return load_run(folders[request.param])


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the LSTM's run folder, to be spoilt."""
    return Path(shutil.copytree(folders["lstm"], tmp_path / "run"))
