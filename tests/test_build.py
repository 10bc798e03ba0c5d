"""How the package is built: whether with CUDA, and what of the machine gets into the compiled module."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from zo_kernels import _C

ROOT = Path(__file__).parents[1]


def build(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Starts to build, on a machine without nvcc and without the tools that a build needs."""
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, str(ROOT / "setup.py"), "build_ext", "--build-temp", str(folder), "-b", str(folder)]
    kept = {name: value for name, value in os.environ.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
    environment = kept | {"PATH": "/nowhere"} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_cuda_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    ended = build(tmp_path, ZO_KERNELS_CUDA="1")
    assert ended.returncode == 1
    assert ended.stderr.endswith(
        "error: ZO_KERNELS_CUDA=1, but there is no nvcc on PATH or in CUDA_HOME: install the CUDA toolkit\n"
    )


def test_another_choice_of_cuda_is_refused(tmp_path: Path) -> None:
    ended = build(tmp_path, ZO_KERNELS_CUDA="yes")
    assert ended.returncode == 1
    assert "error: ZO_KERNELS_CUDA is 'yes': give 0 (never build CUDA) or 1 (fail without it)" in ended.stderr


def configure(folder: Path, version: str, choice: str) -> subprocess.CompletedProcess[str]:
    """Runs CMake alone, where nvcc says that it has this version and can do nothing else."""
    if shutil.which("cmake") is None or shutil.which("ninja") is None:
        pytest.skip("cmake or ninja is not installed")
    nvcc = folder / "nvcc"
    nvcc.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation tools, release {version}, V{version}.1"\n'
    )
    nvcc.chmod(0o755)
    command = ["cmake", "-GNinja", f"-S{ROOT}", f"-B{folder / 'build'}", "-DZO_PYTHON=OFF", f"-DZO_CUDA={choice}"]
    environment = os.environ | {"CUDACXX": str(nvcc)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "problem"),
    [("11.5", "/nvcc is of CUDA 11.5, and 11.8 or newer is needed"), ("12.0", "no working CUDA compiler")],
)
def test_without_a_usable_nvcc(version: str, problem: str, tmp_path: Path) -> None:
    """By default that is a build for the CPU, which says so in one line, or an error where CUDA was asked for."""
    ended = configure(tmp_path, version, "AUTO")
    assert ended.returncode == 0
    (line,) = [line for line in ended.stdout.splitlines() if "zo_kernels" in line]
    assert line.startswith("-- zo_kernels: built for the CPU only: ")
    assert line.endswith(problem)
    ended = configure(tmp_path, version, "ON")
    assert ended.returncode == 1
    assert "zo_kernels: CUDA was asked for, but can't be built:" in ended.stderr
    assert problem in " ".join(ended.stderr.split())
    ended = configure(tmp_path, version, "OFF")
    assert (ended.returncode, "zo_kernels:" in ended.stdout) == (0, False)


def test_the_compiled_module_names_no_folder_of_the_machine_that_built_it() -> None:
    """Without CUDA, two builds of the same sources in two folders are then the same bytes."""
    content = Path(_C.__file__).read_bytes()
    folders = {str(ROOT), sys.prefix, sys.base_prefix, sysconfig.get_path("include"), os.path.expanduser("~")} - {"/"}
    assert [folder for folder in folders if len(folder) > 4 and folder.encode() in content] == []
    assert re.findall(rb"(?<![\w.:/])/(?!/)[\w./-]*(?:pybind11|Python\.h|csrc)[\w./-]*", content) == []
    assert b"GNU\x00" not in content[:4096]  # no build id
