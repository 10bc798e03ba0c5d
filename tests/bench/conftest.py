"""`bench` is not installed: the tests here take it from the checkout. And days made of the steps of gpu_steps."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log"
    path.write_text("")
    return path


@pytest.fixture
def step(log):
    """Makes steps that write their name and process to the log."""

    def make(name, does="passes", seconds=1.0, group="some", **more):
        from bench.gpu.steps import Step
        from tests.bench.gpu_steps import HERE

        return Step(name, f"{HERE}:{does}", seconds, group, {"log": str(log), "name": name}, **more)

    return make


@pytest.fixture
def day(tmp_path):
    """main with these steps; returns the exit code."""

    def run(steps, *options, describe="machine"):
        from bench.gpu.__main__ import main
        from tests.bench.gpu_steps import HERE

        return main(["--out", str(tmp_path), *options], steps=steps, describe=f"{HERE}:{describe}")

    return run
