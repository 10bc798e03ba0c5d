"""The triton backend equals the reference bit for bit in Triton's interpreter. On a GPU: tests/gpu/test_ops.py.

Triton reads TRITON_INTERPRET when it is imported, so the interpreter runs in a process of its own: this file as a
program does all the checks and prints what came of each.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

import zo_kernels as zo
from tests.backends import list_checks, op_checks
from tests.backends.op_checks import Place

CHECKS = op_checks.CHECKS | {f"list: {name}": check for name, check in list_checks.CHECKS.items()}


def main() -> None:
    """Prints, as JSON, what went wrong in each check."""
    found = {}
    for name, check in CHECKS.items():
        try:
            check(Place("triton", "cpu"))
            found[name] = ""
        except Exception:
            found[name] = traceback.format_exc()
    print(json.dumps(found))


def last_line(*arguments: str) -> str:
    """That a Python process prints for which Triton interprets."""
    version = importlib.metadata.version("triton")
    if tuple(map(int, version.split(".")[:2])) < (3, 7) and np.lib.NumpyVersion(np.__version__) >= "2.4.0":
        pytest.skip(f"the interpreter of Triton {version} does not work with NumPy {np.__version__}")
    places = [str(Path(zo.__file__).parents[1]), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, places))}
    command = [sys.executable, *arguments]
    process = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def interpreted() -> dict[str, str]:
    return json.loads(last_line(__file__))


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.slow
def test_in_the_interpreter(name, interpreted):
    assert not interpreted[name], interpreted[name]


def test_the_interpreter_only_computes_if_asked_to():
    assert last_line("-c", "from zo_kernels.backends import backend_for; print(backend_for('cpu').name)") == "cpu"


if __name__ == "__main__":
    main()
