"""What every test may rely on: the choice of instruction set, threads and backend is as it was before each test.

Tests marked `gpu` are skipped where torch finds no CUDA device.
"""

import os

import hypothesis
import pytest
import torch

import zo_kernels as zo
from zo_kernels.backends import cpu

# No deadline: other processes may hold the cores for as long as they like.
hypothesis.settings.register_profile("zo_kernels", deadline=None)
hypothesis.settings.load_profile("zo_kernels")

# Processes of tests that meet need none of the user's own.
os.environ.setdefault("ZO_KERNELS_SECRET", "the secret of the tests")


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def same_engine_after():
    threads = torch.get_num_threads()
    yield
    if cpu._C is not None:
        cpu._C.set_isa("")
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    zo.set_backend(None)
