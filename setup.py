"""Builds zo_kernels._C with CMake; everything else about the package is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).parent.resolve()


def cuda_compiler() -> str | None:
    """Path of nvcc inside its toolkit: what PATH finds may be a wrapper that lies elsewhere."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc")
    if nvcc is None or not Path(nvcc).exists():
        return None
    asked = subprocess.run([nvcc, "--dryrun", "-v", "-c", "x.cu"], capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", asked.stderr, re.MULTILINE)
    if top is None:
        return nvcc
    real = Path(top.group(1).strip(), "bin", "nvcc").resolve()
    return str(real) if real.exists() else nvcc


def cuda_choice() -> tuple[str, str | None]:
    """What ZO_KERNELS_CUDA asks for, as ZO_CUDA of CMake, and the path of nvcc where it is to be used."""
    asked = os.environ.get("ZO_KERNELS_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SetupError(f"ZO_KERNELS_CUDA is {asked!r}: give 0 (never build CUDA) or 1 (fail without it), or unset it")
    if asked == "0":
        return "OFF", None
    nvcc = cuda_compiler()
    if nvcc is not None:
        return "ON" if asked else "AUTO", nvcc
    if asked:
        raise SetupError("ZO_KERNELS_CUDA=1, but there is no nvcc on PATH or in CUDA_HOME: install the CUDA toolkit")
    print("zo_kernels: no nvcc on PATH or in CUDA_HOME, building for the CPU only", file=sys.stderr)
    return "OFF", None


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cuda, nvcc = cuda_choice()  # first: what it refuses needs no more than this
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
            f"-DZO_CUDA={cuda}",
        ]
        build.mkdir(parents=True, exist_ok=True)
        subprocess.run(configure, check=True, env={**os.environ, **({"CUDACXX": nvcc} if nvcc else {})})
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
