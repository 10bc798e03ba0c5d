"""A run that is killed or loses power at any file operation goes on bit for bit, and loses no checkpoint."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from pathlib import Path

import pytest

from tests.run.files.disk import Disk, State, lay_out, read_log
from tests.run.files.small_run import train
from tests.run.files.watched import Watched
from zo_kernels.run.folder import checkpoint_steps

STEPS = 20
Point = tuple[str, int, State]
"""The case, the number of operations done, and what is on the disk then."""


@pytest.fixture(scope="module")
def points(
    watched: Watched, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, list[Point]], bytes]:
    """The different states of the disk, by their case, of a run that is stopped and resumed; and its weights."""
    scratch = tmp_path_factory.mktemp("log")
    ended, count = watched.train(root / "run", steps=STEPS)
    assert ended.code == 0, ended.err
    weights = (root / "run" / "weights.safetensors").read_bytes()
    shutil.rmtree(root / "run")
    stop = {"at": count * 6 // 10, "error": errno.EIO, "lasting": True}
    ended, _ = watched.train(root / "run", steps=STEPS, log=scratch / "log", **stop)
    assert ended.is_one_sentence, ended
    ended, _ = watched.train(root / "run", steps=STEPS, log=scratch / "log", resume=True)
    assert ended.code == 0, ended.err
    assert (root / "run" / "weights.safetensors").read_bytes() == weights
    disk = Disk()
    seen, found = set(), {}
    for number, operation in enumerate(read_log(scratch / "log", root)):
        disk.apply(operation)
        for case, state in {"killed": disk.after_kill(), **disk.after_power_cut()}.items():
            digest = hashlib.sha256(repr(sorted(state.items())).encode()).digest()
            if digest not in seen:
                seen.add(digest)
                found.setdefault(case, []).append((case, number, state))
    for path, content in disk.after_kill().items():  # the log is complete
        assert content is None or (root / path).read_bytes() == content, path
    shutil.rmtree(root / "run")
    return found, weights


def check(point: Point, root: Path, weights: bytes) -> None:
    case, number, state = point
    run = root / "run"
    shutil.rmtree(run, ignore_errors=True)
    lay_out(state, root)
    there = checkpoint_steps(run)
    if (run / "config.json").exists():
        ended = train(run, STEPS, resume=True)
    else:
        assert there == []
        assert train(run, STEPS, resume=True).is_one_sentence
        ended = train(run, STEPS)
    where = (case, number, sorted(state), ended)
    assert ended.code == 0, where
    reached = re.search(r"resumed after step (\d+)", ended.out)
    assert (int(reached[1]) if reached else 0) >= max(there, default=0), where
    assert (run / "weights.safetensors").read_bytes() == weights, where
    assert "warning" not in ended.out, where
    assert not list(run.rglob(".*")), where
    shutil.rmtree(run)


@pytest.mark.parametrize("case", ["killed", "nothing unsynced", "all names", "all names and sizes"])
def test_a_few_moments(case: str, points: tuple[dict[str, list[Point]], bytes], root: Path) -> None:
    found, weights = points
    for number in range(4):
        check(found[case][len(found[case]) * (2 * number + 1) // 8], root, weights)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["killed", "nothing unsynced", "all names", "all names and sizes"])
def test_every_moment(case: str, points: tuple[dict[str, list[Point]], bytes], root: Path) -> None:
    found, weights = points
    for point in found[case]:
        check(point, root, weights)
