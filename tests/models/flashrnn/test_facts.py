"""What is found out about the machine, and the import of flashrnn on machines of every kind."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import zo_kernels
from zo_kernels.models.flashrnn import facts
from zo_kernels.models.flashrnn.facts import Facts, find_toolkit, gather

ROOT = Path(zo_kernels.__file__).parent.parent
HEADERS = facts._HEADERS
VARIABLES = ("CUDA_HOME", "CUDA_PATH", "CONDA_PREFIX", *facts._INCLUDE_VARIABLES)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    find_toolkit.cache_clear()
    yield
    find_toolkit.cache_clear()


def make_toolkit(home: Path, release: str = "12.8", headers: tuple[str, ...] = HEADERS) -> Path:
    """A folder with an nvcc that answers as a real one does."""
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "Cuda compilation tools, release {release}, V{release}.1"\n'
        f'else echo "#\\$ TOP={home}/bin/.." >&2; fi\n'
    )
    nvcc.chmod(0o755)
    (home / "include").mkdir()
    for header in headers:
        (home / "include" / header).touch()
    return nvcc


def test_the_toolkit_behind_a_wrapper_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = make_toolkit(tmp_path / "cuda-12.8")
    wrapper = tmp_path / "local" / "bin" / "nvcc"
    wrapper.parent.mkdir(parents=True)
    wrapper.write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{wrapper.parent}:/usr/bin:/bin")
    assert find_toolkit() == facts.Toolkit(str(tmp_path / "cuda-12.8"), (12, 8))


def test_cuda_home_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toolkit(tmp_path / "one", "11.8")
    make_toolkit(tmp_path / "two", "13.1", ("cuda_runtime_api.h", "cusparse.h"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'one' / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "two"))
    missing = ("cublas_v2.h", "cublasLt.h", "cusolverDn.h")
    assert find_toolkit() == facts.Toolkit(str(tmp_path / "two"), (13, 1), missing)


@pytest.mark.parametrize("variable", [*facts._INCLUDE_VARIABLES, "CONDA_PREFIX"])
def test_headers_may_lie_elsewhere(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_toolkit(tmp_path / "cuda", headers=())
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    elsewhere = tmp_path / "else" / "include"
    elsewhere.mkdir(parents=True)
    for header in HEADERS:
        (elsewhere / header).touch()
    monkeypatch.setenv(variable, str(tmp_path / "else") if variable == "CONDA_PREFIX" else f"/nowhere:{elsewhere}")
    toolkit = find_toolkit()
    assert toolkit is not None
    assert toolkit.missing == ()


def test_no_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert find_toolkit() is None


def test_of_a_cpu_nothing_is_asked() -> None:
    assert gather(torch.device("cpu")) == Facts()


def test_versions() -> None:
    assert facts._release("12.8") == (12, 8)
    assert facts._release("3.10.0+git1234") == (3, 10)
    assert facts._release(None) is None
    assert facts._release("unknown") is None


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_model_on_the_cpu_prints_nothing_and_flashrnn_is_imported_when_it_runs() -> None:
    ran = run_python(
        "import sys, torch, zo_kernels\n"
        "from zo_kernels.models.flashrnn.language_model import FlashLM\n"
        "model = FlashLM(5, 4, 8)\n"
        "assert 'flashrnn' not in sys.modules\n"
        "model(torch.zeros(1, 2, dtype=torch.int64))\n"
        "assert 'flashrnn' in sys.modules\n"
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


LOAD = """
import os, torch
torch.cuda.is_available = lambda: True
from torch.utils import cpp_extension
before = cpp_extension.CUDA_HOME
from zo_kernels.models.flashrnn.load import flashrnn
assert flashrnn().flashrnn is flashrnn().flashrnn
print(os.environ.get("CUDA_HOME"), cpp_extension.CUDA_HOME == before, cpp_extension.CUDA_HOME)
"""


@pytest.mark.slow
def test_the_import_on_a_gpu_without_a_toolkit() -> None:
    """flashrnn 1.0.8 alone fails there, for want of CUDA_HOME, with vanilla and Triton."""
    without = (
        "import zo_kernels.models.flashrnn.load as load\n"
        "load.find_toolkit = lambda: None\ncpp_extension.CUDA_HOME = None\n"
    )
    ran = run_python(LOAD.replace("before =", without + "before ="))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["None", "True", "None"]


def test_the_import_on_a_gpu_sets_cuda_home(tmp_path: Path) -> None:
    make_toolkit(tmp_path / "cuda")
    ran = run_python(LOAD, PATH=f"{tmp_path / 'cuda' / 'bin'}:/usr/bin:/bin")
    assert ran.returncode == 0, ran.stderr
    # A torch that was built with CUDA has found the same folder by itself.
    found_before = str(torch.backends.cuda.is_built())
    assert ran.stdout.split() == [str(tmp_path / "cuda"), found_before, str(tmp_path / "cuda")]


@pytest.mark.slow
def test_the_import_leaves_a_cuda_home_that_is_set(tmp_path: Path) -> None:
    make_toolkit(tmp_path / "cuda")
    make_toolkit(tmp_path / "mine")
    ran = run_python(LOAD, PATH=f"{tmp_path / 'cuda' / 'bin'}:/usr/bin:/bin", CUDA_HOME=str(tmp_path / "mine"))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] == str(tmp_path / "mine")
