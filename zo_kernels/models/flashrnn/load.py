"""Imports flashrnn. Its import looks for a CUDA toolkit, prints, and fails on a GPU without one."""

from __future__ import annotations

import functools
import logging
import os
import sys
from types import ModuleType

import torch

from .facts import find_toolkit

_logger = logging.getLogger("zo_kernels")


@functools.cache
def flashrnn() -> ModuleType:
    """The package flashrnn. Raises RuntimeError if it is not installed.

    On a CUDA machine this sets CUDA_HOME to the toolkit's folder, unless it is set. torch, which compiles for flashrnn,
    would take the folder above nvcc's, which is wrong if nvcc is a wrapper script.
    """
    talk = logging.getLogger("torch.utils.cpp_extension")
    level = talk.level
    if not torch.cuda.is_available():
        talk.setLevel(logging.ERROR)  # hides the warning that there is no GPU, which torch's own import may give too
    try:
        return _import()
    finally:
        talk.setLevel(level)


def _import() -> ModuleType:
    from torch.utils import cpp_extension

    toolkit = find_toolkit() if torch.cuda.is_available() else None
    if toolkit is not None and not (os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")):
        os.environ["CUDA_HOME"] = toolkit.home
        _logger.info("CUDA_HOME set to %s, for flashrnn", toolkit.home)
    before = cpp_extension.CUDA_HOME
    if torch.cuda.is_available():
        # torch may have looked it up before CUDA_HOME was set. Without a toolkit any folder lets the import succeed.
        cpp_extension.CUDA_HOME = toolkit.home if toolkit else sys.prefix
    try:
        import flashrnn as package
    except ImportError as error:
        raise RuntimeError(f"flashrnn can't be imported ({error}): install it with `pip install flashrnn`") from error
    finally:
        if toolkit is None:
            cpp_extension.CUDA_HOME = before
    return package
