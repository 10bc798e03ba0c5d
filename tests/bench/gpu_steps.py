"""Steps of a GPU day that do what tests ask of them. They run in workers, which import this module."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
HERE = "tests.bench.gpu_steps"


def machine(device):
    return {"machine": {"gpu": "NVIDIA H200", "torch": "2.11"}, "missing": {"flashrnn": "flashrnn is not installed"}}


def newer_machine(device):
    return {"machine": {"gpu": "NVIDIA H200", "torch": "2.12"}, "missing": {}}


def no_machine(device):
    return {"error": "there is no such device"}


def passes(device, log, name):
    with open(log, "a") as file:
        file.write(f"{name} {os.getpid()}\n")
    return {"figures": {"seconds": 3.0, "peak GB": 0.25}}


def fails(device, log, name):
    passes(device, log, name)
    raise AssertionError("3 of 5 differ\nand more")


def raises(device, log, name):
    passes(device, log, name)
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nand advice")


def aborts(device, log, name):
    passes(device, log, name)
    os.write(2, b"last words\n")
    os.abort()


def exits(device, log, name):
    passes(device, log, name)
    os._exit(3)


def hangs_once(device, log, name):
    again = name in Path(log).read_text()
    passes(device, log, name)
    if not again:
        time.sleep(600)
    return {}


def where_it_runs(device):
    import tests.cases

    return {"cases": tests.cases.__file__, "pid": os.getpid()}


def done(log):
    """Names of the steps that ran, in order, and their processes."""
    lines = [line.split() for line in log.read_text().splitlines()]
    return [name for name, _ in lines], [int(pid) for _, pid in lines]


def partial(tmp_path):
    return json.loads((tmp_path / "nvidia-h200.partial.json").read_text())["records"]


def result(tmp_path):
    return json.loads((tmp_path / "nvidia-h200.json").read_text())


def started(steps, log, tmp_path):
    """A process that runs the steps, in the middle of the second."""
    source = (
        "import sys\n"
        "from bench.gpu.__main__ import main\n"
        "from bench.gpu.steps import Step\n"
        f"sys.exit(main(sys.argv[1:], steps={steps!r}, describe={HERE + ':machine'!r}))\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", source, "--out", str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(done(log)[0]) == 2)
    return run


def gone(process):
    """Or a zombie, where nobody collects orphans."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
