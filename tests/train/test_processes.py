"""A run of several processes is the run of one: the same weights, journal and metrics, whoever dies on the way."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distributed.cells import cells_of_step, expected_cells
from tests.train.crashes import Launch, finish, launch, read_cells, runs_alike
from tests.train.runs import FILES, SMALL, files_of, metrics_of, without_times
from zo_kernels.run.folder import checkpoint_steps
from zo_kernels.train.__main__ import main

RUN = [*SMALL, "--steps", "24", "--checkpoint-every", "7", "--validate-every", "9"]
"""Three probes a step."""

ACTIVITY = ["--solver", "activity", "--lr", "0.01"]


def is_same_run(a: Path, b: Path) -> bool:
    return runs_alike(a, b) and without_times(a) == without_times(b) and files_of(a) == FILES


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*RUN, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("flags", "world_size", "killed"),
    [
        ([], 2, None),
        ([], 4, None),
        (["--model", "paper-dnc", "--memory-slots", "5", "--memory-width", "4", "--lr", "0.01"], 3, None),
        (["--transforms", "momentum:0.9:4", "--distribution", "normal", "--lr", "0.01"], 3, ("losses heard", 17)),
        (["--dense", "adam", "--lr", "0.01", "--estimator", "1.5-spsa"], 2, ("losses heard", 33)),
        (["--max-cosine-distance", "1.2", "--micro-batch-size", "2"], 2, ("losses heard", 33)),
        (["--task", "text", "--data", __file__, "--stateful", "--segment-length", "4"], 2, ("losses heard", 17)),
        ([*ACTIVITY, "--micro-batch-size", "1"], 2, None),
        ([*ACTIVITY, "--micro-batch-size", "2", "--credit-length", "2", "--local-gradient"], 3, None),
        ([*ACTIVITY, "--micro-batch-size", "1"], 3, ("losses heard", 17)),
    ],
)
def test_any_number_of_processes_is_the_run_of_one(
    flags: list[str], world_size: int, killed: tuple[str, int] | None, tmp_path: Path
) -> None:
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert finish([*RUN, *flags, "--out", str(alone)]) == 0
    arguments = [*RUN, *flags, "--out", str(shared)]
    if killed is not None:
        assert launch(arguments, world_size, {1: killed}).finish()[1][0] == -signal.SIGKILL
        assert 7 < len(metrics_of(shared)) < 24
    assert launch(arguments, world_size).finish() == [(0, "")] * world_size
    assert is_same_run(shared, alone)


@pytest.mark.parametrize(
    ("split", "world_size", "estimator"),
    [("batch", 2, "1.5-spsa"), ("batch", 3, "cd"), ("both", 3, "fd"), ("both", 4, "cd"), ("both", 3, "2-spsa")],
)
def test_sharing_micro_batches_changes_nothing(split: str, world_size: int, estimator: str, tmp_path: Path) -> None:
    """Four micro-batches of one sequence, three probes: tables whose cells these numbers do not divide."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    flags = [*RUN, "--steps", "6", "--micro-batch-size", "1", "--estimator", estimator]
    assert finish([*flags, "--out", str(alone)]) == 0
    both = [*flags, "--split", split, "--balance", "--check-every", "2", "--out", str(shared)]
    assert launch(both, world_size).finish() == [(0, "")] * world_size
    assert is_same_run(shared, alone)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("split", ["probes", "batch", "both"])
def test_each_process_evaluates_its_share(split: str, world_size: int, tmp_path: Path) -> None:
    """Three probes on four micro-batches."""
    arguments = [*RUN, "--steps", "3", "--micro-batch-size", "1", "--split", split, "--out", str(tmp_path / "run")]
    assert launch(arguments, world_size, cells=tmp_path).finish() == [(0, "")] * world_size
    found = read_cells(tmp_path, world_size)
    for step in range(3):
        cells = [cells_of_step(mine, 0, step, 3) for mine in found]
        assert [set(mine) for mine in cells] == expected_cells(split, world_size, 3, 4)
        assert sum(map(len, cells)) == 12  # none twice
    assert sum(map(len, found)) == 36


@pytest.mark.parametrize(
    ("rank", "moment", "number", "world_size_then"),
    [
        (0, "folder made", 0, 2),
        (0, "journal begun", 0, 3),
        (0, "row not written", 9, 2),
        (0, "row written", 9, 4),
        (0, "checkpoint unnamed", 1, 1),
        (0, "weights not written", 0, 3),
        (1, "group joined", 0, 3),
        (2, "losses not sent", 12, 3),
        (1, "losses heard", 12, 2),
        (2, "step taken", 19, 3),
    ],
)
def test_a_process_is_killed(
    rank: int, moment: str, number: int, world_size_then: int, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = [*RUN, "--out", str(out)]
    ends = launch(arguments, 3, {rank: (moment, number)}).finish()
    assert ends[rank][0] == -signal.SIGKILL
    for other, (code, said) in enumerate(ends):
        if other != rank and moment != "weights not written":  # by then they have done their part
            assert code == 2
            assert said.startswith(f"rank {other}: error: ")
    assert launch(arguments, world_size_then).finish() == [(0, "")] * world_size_then
    assert is_same_run(out, whole)


def wait_for_steps(out: Path, launched: Launch) -> None:
    """Waits until the run has taken a few steps."""
    while launched.processes[0][0].is_alive() and not has_steps(out):
        time.sleep(0.002)


def has_steps(out: Path) -> bool:
    path = out / "metrics.jsonl"
    return path.exists() and path.read_bytes().count(b"\n") > 2


@pytest.mark.parametrize(("rank", "number", "code"), [(0, signal.SIGTERM, 143), (1, signal.SIGTERM, 143), (0, 2, 130)])
def test_a_signal_to_one_process_ends_the_run_cleanly(
    rank: int, number: int, code: int, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = [*RUN, "--out", str(out)]
    launched = launch(arguments, 3)
    wait_for_steps(out, launched)
    launched.send_signal(rank, number)
    ends = launched.finish()
    assert ends[rank][0] == code
    assert {end for end, _ in ends} <= {code, 130}
    assert files_of(out) == FILES
    assert launch(arguments, 2).finish() == [(0, "")] * 2
    assert is_same_run(out, whole)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_the_others_end_when_a_process_hangs(rank: int, whole: Path, tmp_path: Path) -> None:
    """It is named and left alone: ending it is up to the launcher, as is starting all of them again."""
    out = tmp_path / "run"
    arguments = [*RUN, "--out", str(out), "--timeout", "3"]
    launched = launch(arguments, 3)
    wait_for_steps(out, launched)
    launched.send_signal(rank, signal.SIGSTOP)
    for other in {0, 1, 2} - {rank}:
        launched.processes[other][0].join(60)
        assert launched.processes[other][0].exitcode == 2
    assert launched.processes[rank][0].is_alive()
    launched.send_signal(rank, signal.SIGKILL)
    ends = launched.finish()
    assert any(f"no answer from rank {rank} for" in said for _, said in ends)
    assert launch(arguments, 3).finish() == [(0, "")] * 3
    assert is_same_run(out, whole)


@pytest.mark.slow
def test_a_process_exits_although_another_hangs(tmp_path: Path) -> None:
    """In the interpreter's own way, which destroys the process group: torchrun waits for the exit code."""
    out = tmp_path / "run"
    command = [sys.executable, "-m", "zo_kernels.train", *RUN, "--steps", "100000", "--threads", "1"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    processes = []
    for rank in (0, 1):
        own = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "lo", **address}
        processes.append(
            subprocess.Popen(
                [*command, "--timeout", "20", "--out", str(out)],
                env={**os.environ, **own},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        )
    try:
        while all(p.poll() is None for p in processes) and not has_steps(out):
            time.sleep(0.01)
        processes[0].send_signal(signal.SIGSTOP)
        _, said = processes[1].communicate(timeout=90)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert processes[1].returncode == 2
    assert b"no answer from rank 0 for" in said


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_flipped_bit_is_named(rank: int, tmp_path: Path) -> None:
    """Also in two processes, where there is no majority, because the journal is right."""
    out = tmp_path / "run"
    arguments = [*RUN, "--out", str(out), "--check-every", "5"]
    world_size = max(2, rank + 1)
    for code, said in launch(arguments, world_size, {rank: ("bit flipped", 11)}).finish():
        assert code == 2
        assert f"before step 14, rank {rank} did not hold the parameters of the journal" in said
    assert checkpoint_steps(out)[-1] == 7
    assert launch(arguments, world_size).finish() == [(0, "")] * world_size


@pytest.mark.parametrize("rank", [0, 1])
def test_a_flipped_bit_is_repaired(rank: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [*RUN, "--out", str(out), "--check-every", "1", "--repair"]
    assert launch(arguments, 2, {rank: ("bit flipped", 11)}).finish() == [(0, "")] * 2
    assert is_same_run(out, whole)


def test_one_process_of_a_launcher_goes_on(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert launch([*RUN, "--out", str(out)], 1, {0: ("row written", 4)}).finish()[0][0] == -signal.SIGKILL
    assert launch([*RUN, "--out", str(out)], 1).finish() == [(0, "")]
    assert is_same_run(out, whole)


def test_the_folder_of_a_job(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch([*RUN], 2, {0: ("row written", 4)}).finish()[0][0] == -signal.SIGKILL
    assert launch([*RUN], 2).finish() == [(0, "")] * 2
    assert is_same_run(tmp_path / "runs" / "copy-job", whole)


def test_lr_search_is_done_once(tmp_path: Path) -> None:
    out, alone = tmp_path / "run", tmp_path / "alone"
    arguments = [*RUN, "--lr", "search"]
    assert launch([*arguments, "--out", str(out)], 2, {0: ("row written", 4)}).finish()[0][0] == -signal.SIGKILL
    assert launch([*arguments, "--out", str(out)], 2).finish() == [(0, "")] * 2
    assert finish([*arguments, "--out", str(alone)]) == 0
    assert runs_alike(out, alone)
    assert (out / "lr_search.json").read_bytes() == (alone / "lr_search.json").read_bytes()


def read_refusal(arguments: list[str], world_size: int = 2) -> str:
    """Returns what rank 0 says when all processes end with an error."""
    ends = launch(arguments, world_size).finish()
    assert {code for code, _ in ends} == {2}
    return ends[0][1]


def test_refusals(whole: Path, tmp_path: Path) -> None:
    assert "holds a run with --lr 0.3, not 0.2" in read_refusal([*RUN, "--lr", "0.2", "--out", str(whole)])
    others = (("notes.txt", "mine", "is not the folder of a run"), ("config.json", "{}", "is not the config of a run"))
    for name, content, said in others:
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / name).write_text(content)
        assert said in read_refusal([*RUN, "--out", str(tmp_path / name)])
        assert (tmp_path / name / name).read_text() == content
    sharing = read_refusal([*RUN, "--split", "batch", "--out", str(tmp_path / "run")])
    assert "--split batch splits the micro-batches: give --micro-batch-size too" in sharing
    bptt = read_refusal([*RUN, "--solver", "bptt", "--out", str(tmp_path / "bptt")])
    assert "--solver bptt runs in one process only" in bptt
    activity = read_refusal([*RUN, *ACTIVITY, "--out", str(tmp_path / "activity")])
    assert "processes share the micro-batches of --solver activity: give a --micro-batch-size" in activity
