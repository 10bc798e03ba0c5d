"""How the package is built: whether with CUDA, and what of the machine gets into the compiled module."""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from zo_kernels import _C

ROOT = Path(__file__).parents[1]


NVCC = """case "$1" in
--version) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
--dryrun) ;;
*) {trial} ;;
esac"""


def tool(path: Path, script: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def build(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Starts to build where there is no nvcc but one that CUDA_HOME names, and a CMake that says what it is told."""
    pytest.importorskip("setuptools", minversion="77")
    pytest.importorskip("pybind11")
    tool(folder / "tools" / "cmake", 'echo "cmake: $@"; exit 1')
    command = [sys.executable, str(ROOT / "setup.py"), "build_ext", "--build-temp", str(folder), "-b", str(folder)]
    theirs = ("CUDA_HOME", "CUDA_PATH", "CUDAARCHS", "CUDAHOSTCXX", "ZO_KERNELS_CUDA")
    kept = {name: value for name, value in os.environ.items() if name not in theirs}
    environment = kept | {"PATH": str(folder / "tools")} | variables
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def assert_builds_for_the_cpu(folder: Path, problem: str, **variables: str) -> None:
    """By default, and one line says why; where CUDA was asked for, that is an error of one sentence."""
    ended = build(folder, **variables)
    assert "-DZO_CUDA=OFF" in ended.stdout
    lines = [line for line in ended.stderr.splitlines() if "zo_kernels: " in line]
    assert lines == [f"zo_kernels: building for the CPU only: {problem}"]
    ended = build(folder, ZO_KERNELS_CUDA="1", **variables)
    assert (ended.returncode, "cmake:" in ended.stdout) == (1, False)
    assert ended.stderr.splitlines()[-1] == f"error: ZO_KERNELS_CUDA=1, but {problem}"
    assert "Traceback" not in ended.stderr


def test_without_nvcc(tmp_path: Path) -> None:
    problem = "there is no nvcc on PATH or in CUDA_HOME: install the CUDA toolkit"
    assert_builds_for_the_cpu(tmp_path, problem)
    assert_builds_for_the_cpu(tmp_path, problem, CUDA_HOME=str(tmp_path / "gone"))


def test_another_choice_of_cuda_is_refused(tmp_path: Path) -> None:
    ended = build(tmp_path, ZO_KERNELS_CUDA="yes")
    assert ended.returncode == 1
    assert "error: ZO_KERNELS_CUDA is 'yes': give 0 (never build CUDA) or 1 (fail without it)" in ended.stderr


BROKEN = {
    "old": (
        NVCC.format(version="11.5", trial="exit 0"),
        "is of CUDA 11.5, and 11.8 or newer is needed: set CUDA_HOME to one",
    ),
    "broken": (
        "echo 'nvcc: libstdc++.so.6 is missing'; exit 127",
        "does not work (nvcc: libstdc++.so.6 is missing): set CUDA_HOME to another toolkit",
    ),
    "silent": ("exit 1", "does not work (it says nothing): set CUDA_HOME to another toolkit"),
    "host": (
        NVCC.format(
            version="12.0",
            trial="echo 'In file included from x'; echo '#error -- unsupported GNU version! later'; exit 1",
        ),
        "can't compile (error -- unsupported GNU version! later): set CUDAHOSTCXX to a C++ compiler that "
        "it supports, or CUDA_HOME to another toolkit",
    ),
    "architecture": (
        NVCC.format(version="12.0", trial="echo \"nvcc fatal : Unsupported gpu architecture 'compute_200'\"; exit 1"),
        "can't compile (fatal : Unsupported gpu architecture 'compute_200'): set CUDAARCHS to others, or "
        "CUDA_HOME to another toolkit",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_nvcc_that_can_not_be_used(kind: str, tmp_path: Path) -> None:
    script, problem = BROKEN[kind]
    nvcc = tmp_path / "bin" / "nvcc"
    tool(nvcc, script)
    assert_builds_for_the_cpu(tmp_path, f"{nvcc} {problem}", CUDA_HOME=str(tmp_path))


@pytest.mark.parametrize("asked", ["75", "80;75-real", "all", "all-major", "sm_80"])
def test_architectures_without_the_kernels_instructions(asked: str, tmp_path: Path) -> None:
    tool(tmp_path / "bin" / "nvcc", NVCC.format(version="13.0", trial="exit 0"))
    problem = f"CUDAARCHS is {asked!r}, but the kernels need 80 or newer: set it to '80;90' or such"
    assert_builds_for_the_cpu(tmp_path, problem, CUDA_HOME=str(tmp_path), CUDAARCHS=asked)


def test_the_machines_own_architecture(tmp_path: Path) -> None:
    tool(tmp_path / "bin" / "nvcc", NVCC.format(version="13.0", trial="exit 0"))
    variables = {"CUDA_HOME": str(tmp_path), "CUDAARCHS": "native"}
    problem = "CUDAARCHS is 'native', but nvidia-smi finds no GPU: set it to numbers such as '80;90'"
    assert_builds_for_the_cpu(tmp_path, problem, **variables)
    tool(tmp_path / "tools" / "nvidia-smi", "echo 9.0; echo 8.0; echo 9.0")
    assert "-DZO_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=80-real;90-real\n" in build(tmp_path, **variables).stdout
    tool(tmp_path / "tools" / "nvidia-smi", "echo 7.5")
    problem = "CUDAARCHS is 'native', here 75-real, but the kernels need 80 or newer: set it to '80;90' or such"
    assert_builds_for_the_cpu(tmp_path, problem, **variables)


def test_a_usable_nvcc_is_used(tmp_path: Path) -> None:
    """With the architectures and the host compiler that were asked for, and nothing is said."""
    trial = f'echo "$@" > {tmp_path}/asked'
    tool(tmp_path / "bin" / "nvcc", NVCC.format(version="11.8", trial=trial))
    ended = build(tmp_path, CUDA_HOME=str(tmp_path))
    assert "-DZO_CUDA=ON\n" in ended.stdout
    assert "zo_kernels: " not in ended.stderr
    codes = "-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90,code=sm_90"
    assert f"-std=c++17 {codes}" in (tmp_path / "asked").read_text()
    ended = build(tmp_path, CUDA_HOME=str(tmp_path), CUDAARCHS="90a-real 100-virtual", CUDAHOSTCXX="g++-11")
    assert "-DZO_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=90a-real;100-virtual\n" in ended.stdout
    codes = "-gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_100,code=compute_100"
    assert f"-ccbin g++-11 {codes}" in (tmp_path / "asked").read_text()


def test_the_compiled_module_names_no_folder_of_the_machine_that_built_it() -> None:
    """Without CUDA, two builds of the same sources in two folders are then the same bytes."""
    content = Path(_C.__file__).read_bytes()
    folders = {str(ROOT), sys.prefix, sys.base_prefix, sysconfig.get_path("include"), os.path.expanduser("~")} - {"/"}
    assert [folder for folder in folders if len(folder) > 4 and folder.encode() in content] == []
    assert re.findall(rb"(?<![\w.:/])/(?!/)[\w./-]*(?:pybind11|Python\.h|csrc)[\w./-]*", content) == []
    assert b"GNU\x00" not in content[:4096]  # no build id
