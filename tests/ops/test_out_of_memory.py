"""Memory that runs out is a MemoryError, never a signal, and states are then as they were."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("out_of_memory.py")


@pytest.mark.parametrize("trials", [90, pytest.param(900, marks=pytest.mark.slow)])
def test_populations_with_too_little_memory(trials: int) -> None:
    # A fixed threshold: each buffer is mapped anew, and none is made of memory that an earlier one left.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "4096", "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, PROGRAM, str(trials)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, (result.returncode, result.stderr)
    done, refused = (int(words.split()[0]) for words in result.stdout.split("; "))
    assert done + refused == trials
    assert min(done, refused) >= trials // 10
