"""A run of several processes is the run of one: the same weights, journal and metrics, whoever dies on the way."""

import signal
import time
from pathlib import Path

import pytest

from tests.train.crashes import Launch, finish, launch, runs_alike
from tests.train.runs import FILES, SMALL, files_of, metrics_of
from zo_kernels.run.folder import checkpoint_steps
from zo_kernels.train.__main__ import main

RUN = [*SMALL, "--steps", "24", "--checkpoint-every", "7", "--validate-every", "9"]
"""Three probes a step."""


def without_seconds(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in metrics_of(folder)]


def alike(a: Path, b: Path) -> bool:
    return runs_alike(a, b) and without_seconds(a) == without_seconds(b) and files_of(a) == FILES


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
    assert alike(shared, alone)


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
    assert alike(shared, alone)


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
    assert alike(out, whole)


def started(out: Path, launched: Launch) -> None:
    """Waits until the run has come to its steps."""
    path = out / "metrics.jsonl"
    while launched.members[0][0].is_alive() and not (path.exists() and path.read_bytes().count(b"\n") > 2):
        time.sleep(0.002)


@pytest.mark.parametrize(("rank", "number", "code"), [(0, signal.SIGTERM, 143), (1, signal.SIGTERM, 143), (0, 2, 130)])
def test_a_signal_to_one_process_ends_the_run_cleanly(
    rank: int, number: int, code: int, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = [*RUN, "--out", str(out)]
    launched = launch(arguments, 3)
    started(out, launched)
    launched.signal(rank, number)
    ends = launched.finish()
    assert ends[rank][0] == code
    assert {end for end, _ in ends} <= {code, 130}
    assert files_of(out) == FILES
    assert launch(arguments, 2).finish() == [(0, "")] * 2
    assert alike(out, whole)


@pytest.mark.slow
def test_a_process_that_hangs_is_given_up(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [*RUN, "--out", str(out), "--timeout", "3"]
    launched = launch(arguments, 3)
    started(out, launched)
    launched.signal(2, signal.SIGSTOP)
    ends = launched.finish()
    assert [code for code, _ in ends] == [2, 2, -signal.SIGKILL]
    assert any("no answer of rank 2 for" in said for _, said in ends)
    assert launch(arguments, 3).finish() == [(0, "")] * 3
    assert alike(out, whole)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_flipped_bit_is_named(rank: int, tmp_path: Path) -> None:
    """In two processes, too, whose votes are one to one: the journal knows."""
    out = tmp_path / "run"
    arguments = [*RUN, "--out", str(out), "--check-every", "5"]
    world_size = max(2, rank + 1)
    for code, said in launch(arguments, world_size, {rank: ("bit flipped", 11)}).finish():
        assert code == 2
        assert f"before step 14, rank {rank} did not hold the parameters that the journal says" in said
    assert checkpoint_steps(out)[-1] == 7
    assert launch(arguments, world_size).finish() == [(0, "")] * world_size


@pytest.mark.parametrize("rank", [0, 1])
def test_a_flipped_bit_is_healed(rank: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = [*RUN, "--out", str(out), "--check-every", "1", "--repair"]
    assert launch(arguments, 2, {rank: ("bit flipped", 11)}).finish() == [(0, "")] * 2
    assert alike(out, whole)


def test_one_process_of_a_launcher_goes_on(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert launch([*RUN, "--out", str(out)], 1, {0: ("row written", 4)}).finish()[0][0] == -signal.SIGKILL
    assert launch([*RUN, "--out", str(out)], 1).finish() == [(0, "")]
    assert alike(out, whole)


def test_the_folder_of_a_job(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch([*RUN], 2, {0: ("row written", 4)}).finish()[0][0] == -signal.SIGKILL
    assert launch([*RUN], 2).finish() == [(0, "")] * 2
    assert alike(tmp_path / "runs" / "copy-job", whole)


def test_lr_search_is_done_once(tmp_path: Path) -> None:
    out, alone = tmp_path / "run", tmp_path / "alone"
    arguments = [*RUN, "--lr", "search"]
    assert launch([*arguments, "--out", str(out)], 2, {0: ("row written", 4)}).finish()[0][0] == -signal.SIGKILL
    assert launch([*arguments, "--out", str(out)], 2).finish() == [(0, "")] * 2
    assert finish([*arguments, "--out", str(alone)]) == 0
    assert runs_alike(out, alone)
    assert (out / "lr_search.json").read_bytes() == (alone / "lr_search.json").read_bytes()


def refused(arguments: list[str], world_size: int = 2) -> str:
    """What rank 0 says."""
    ends = launch(arguments, world_size).finish()
    assert {code for code, _ in ends} == {2}
    return ends[0][1]


def test_refusals(whole: Path, tmp_path: Path) -> None:
    assert "holds a run whose --lr is 0.3, not 0.2" in refused([*RUN, "--lr", "0.2", "--out", str(whole)])
    others = (("notes.txt", "mine", "is not the folder of a run"), ("config.json", "{}", "is not the config of a run"))
    for name, content, said in others:
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / name).write_text(content)
        assert said in refused([*RUN, "--out", str(tmp_path / name)])
        assert (tmp_path / name / name).read_text() == content
    sharing = refused([*RUN, "--split", "batch", "--out", str(tmp_path / "run")])
    assert "--split batch splits the micro-batches: give --micro-batch-size too" in sharing
    bptt = refused([*RUN, "--solver", "bptt", "--out", str(tmp_path / "bptt")])
    assert "back-propagation is not shared among processes" in bptt
