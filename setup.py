"""Builds zo_kernels._C with CMake; everything else about the package is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).parent.resolve()


OLDEST_NVCC = 11, 8  # the first that knows sm_90
OLDEST_ARCHITECTURE = 80  # the kernels multiply bfloat16 numbers
TRIAL = "#include <functional>\n__global__ void kernel() {}\nint main() { kernel<<<1, 1>>>(); }\n"


class NoCuda(Exception):
    """Why the CUDA kernels can't be built, and what to do about it."""


def output_of(*command: str) -> tuple[bool, str]:
    """Whether a command succeeded, and what it said."""
    try:
        ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError as error:
        return False, str(error)
    return ended.returncode == 0, ended.stdout


def find_nvcc() -> str:
    """Path of nvcc inside its toolkit: what PATH finds may be a wrapper that lies elsewhere."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc")
    if nvcc is None or not Path(nvcc).exists():
        raise NoCuda("there is no nvcc on PATH or in CUDA_HOME: install the CUDA toolkit")
    top = re.search(r"^#\$ TOP=(.+)$", output_of(nvcc, "--dryrun", "-v", "-c", "x.cu")[1], re.MULTILINE)
    real = Path(top.group(1).strip(), "bin", "nvcc").resolve() if top else Path(nvcc)
    return str(real) if real.exists() else nvcc


def architectures() -> list[str]:
    """What CUDAARCHS asks for, as CMake has it: "80", "90a-real", "100-virtual"; [] leaves it to CMakeLists.txt."""
    asked = os.environ.get("CUDAARCHS", "").strip()
    found = re.split("[;, ]+", asked) if asked else []
    if asked == "native":
        said = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")[1]
        found = sorted({f"{major}{minor}-real" for major, minor in re.findall(r"^(\d+)\.(\d+)$", said, re.MULTILINE)})
        if not found:
            raise NoCuda("CUDAARCHS is 'native', but nvidia-smi finds no GPU: set it to numbers such as '80;90'")
    numbers = [re.fullmatch(r"(\d+)[af]?(-real|-virtual)?", one) for one in found]
    if not all(number and int(number[1]) >= OLDEST_ARCHITECTURE for number in numbers):
        what = f"{asked!r}, here {' '.join(found)}" if asked == "native" else repr(asked)
        needed = f"the kernels need {OLDEST_ARCHITECTURE} or newer: set it to '80;90' or such"
        raise NoCuda(f"CUDAARCHS is {what}, but {needed}")
    return found


def try_nvcc(nvcc: str, found: list[str]) -> None:
    """Raises NoCuda where this nvcc is too old or does not build a program for these architectures."""
    works, said = output_of(nvcc, "--version")
    release = re.search(r"release (\d+)\.(\d+)", said)
    if not works or release is None:
        said = (said.strip().splitlines() or ["it says nothing"])[0]
        raise NoCuda(f"{nvcc} does not work ({said}): set CUDA_HOME to another toolkit")
    if (int(release[1]), int(release[2])) < OLDEST_NVCC:
        oldest = "{}.{}".format(*OLDEST_NVCC)
        found_here = f"{nvcc} is of CUDA {release[1]}.{release[2]}"
        raise NoCuda(f"{found_here}, and {oldest} or newer is needed: set CUDA_HOME to one")
    host = ["-ccbin", os.environ["CUDAHOSTCXX"]] if os.environ.get("CUDAHOSTCXX") else []
    codes = []
    for one in found or ["80", "90"]:
        number, _, kind = one.partition("-")
        codes.append(f"-gencode=arch=compute_{number},code={'compute' if kind == 'virtual' else 'sm'}_{number}")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "trial.cu")
        source.write_text(TRIAL)
        works, said = output_of(nvcc, "-std=c++17", *host, *codes, "-o", str(source.with_suffix("")), str(source))
    if not works:
        problem = re.search(r"(error|fatal)\b.{,100}", said, re.IGNORECASE)
        line = problem[0] if problem else (said.strip().splitlines() or ["it says nothing"])[0]
        remedy = "CUDAARCHS to others" if "gpu arch" in line else "CUDAHOSTCXX to a C++ compiler that it supports"
        raise NoCuda(f"{nvcc} can't compile ({line}): set {remedy}, or CUDA_HOME to another toolkit")


def cuda_choice() -> tuple[list[str], dict[str, str]]:
    """CMake's options for what ZO_KERNELS_CUDA asks for, and the variables that it needs."""
    asked = os.environ.get("ZO_KERNELS_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SetupError(f"ZO_KERNELS_CUDA is {asked!r}: give 0 (never build CUDA) or 1 (fail without it), or unset it")
    if asked == "0":
        return ["-DZO_CUDA=OFF"], {}
    try:
        nvcc, found = find_nvcc(), architectures()
        try_nvcc(nvcc, found)
    except NoCuda as problem:
        if asked:
            raise SetupError(f"ZO_KERNELS_CUDA=1, but {problem}") from None
        print(f"zo_kernels: building for the CPU only: {problem}", file=sys.stderr)
        return ["-DZO_CUDA=OFF"], {}
    options = ["-DZO_CUDA=ON", *([f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(found)}"] if found else [])]
    return options, {"CUDACXX": nvcc}


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cuda, variables = cuda_choice()  # first: what it refuses needs no more than this
        import pybind11

        module = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve()
        configure = [
            "cmake",
            "-GNinja",
            "--fresh",  # a cache of an earlier isolated build points into an environment that is gone
            f"-S{ROOT}",
            f"-B{build}",
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}",  # the build environment's own
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            "-DCMAKE_BUILD_TYPE=Release",
            *cuda,
        ]
        build.mkdir(parents=True, exist_ok=True)
        subprocess.run(configure, check=True, env=os.environ | variables)
        subprocess.run(["cmake", "--build", str(build), "--target", "_C"], check=True)
        built = next(build.glob("_C.*.so"))
        module.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(built, module)
        # Beside the sources too: commands run from the checkout, such as `python -m zo_kernels.train` after
        # `pip install .`, import the package from there.
        beside = ROOT / "zo_kernels" / module.name
        if beside != module:
            try:
                shutil.copy2(built, beside)
            except OSError as error:
                print(f"zo_kernels: not copied beside the sources ({error})", file=sys.stderr)


setup(ext_modules=[Extension("zo_kernels._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
