"""examples/durable_loop.py, run as its docstring says: in processes of their own, one of which is killed."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "durable_loop.py"


def lines_of(*command: str) -> str:
    paths = os.pathsep.join([str(SCRIPT.parent), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths}
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_it_is_killed_and_goes_on(tmp_path: Path) -> None:
    def arguments(name: str) -> tuple[str, ...]:
        return str(SCRIPT), "--out", str(tmp_path / name), "--steps", "300"

    whole = lines_of(*arguments("whole"))
    process = subprocess.Popen([sys.executable, *arguments("killed")], stdout=subprocess.DEVNULL)
    journal = tmp_path / "killed" / "checkpoints" / "step-000000200.safetensors"
    while not journal.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    again = lines_of(*arguments("killed"))
    assert re.match(r"goes on from step 200\n", again)
    assert again.splitlines()[-1] == whole.splitlines()[-1]
    a, b = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "killed"))
    assert all(a[name].equal(b[name]) for name in a)
    out = tmp_path / "w.safetensors"
    replay = ("-m", "zo_kernels.replay", str(tmp_path / "killed"), "--step", "123", "--allow-import")
    assert "123 steps replayed" in lines_of(*replay, "--out", str(out))
    assert load_file(out).keys() == a.keys()
