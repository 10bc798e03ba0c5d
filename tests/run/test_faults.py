"""Whatever file operation fails, the run says so in one sentence and goes on bit for bit once the disk works."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from tests.run.files.small_run import train
from tests.run.files.watched import Watched

STEPS = 8
FAULTS = [(errno.EIO, False), (errno.ENOSPC, True), (errno.ENOSPC, False), (errno.EIO, True)]
"""The error, and whether it lasts."""


@pytest.fixture(scope="module")
def whole(watched: Watched, root: Path) -> tuple[bytes, int]:
    """The weights of an undisturbed run, and the number of its operations that can fail."""
    train(root / "first", STEPS)  # as the first one does more
    ended, _ = watched.train(root / "first", steps=STEPS, resume=True)
    ended, count = watched.train(root / "whole", steps=STEPS)
    assert ended.code == 0, ended.err
    weights = (root / "whole" / "weights.safetensors").read_bytes()
    shutil.rmtree(root / "first")
    shutil.rmtree(root / "whole")
    return weights, count


@pytest.fixture(scope="module")
def stopped(watched: Watched, root: Path, whole: tuple[bytes, int]) -> tuple[Path, int]:
    """A run that was stopped in the middle, and the number of operations of resuming it, reads included."""
    folder = root / "stopped"
    ended, _ = watched.train(folder, steps=STEPS, at=whole[1] * 2 // 3, error=errno.EIO, lasting=True)
    assert ended.is_one_sentence, ended
    shutil.copytree(folder, root / "copy")
    ended, count = watched.train(root / "copy", steps=STEPS, resume=True, reads=True)
    assert ended.code == 0, ended.err
    shutil.rmtree(root / "copy")
    return folder, count


def check_start(watched: Watched, out: Path, weights: bytes, at: int, error: int, lasting: bool) -> int:
    """Returns whether the run ended with an error."""
    ended, _ = watched.train(out, steps=STEPS, at=at, error=error, lasting=lasting)
    where = (at, errno.errorcode[error], lasting, ended)
    assert ended.code == 0 or ended.is_one_sentence, where
    has_begun = (out / "config.json").exists()
    if not has_begun and not lasting:
        assert not out.exists(), where
    if ended.code == 2:
        again = train(out, STEPS, resume=has_begun)
        assert again.code == 0, (where, again)
    assert (out / "weights.safetensors").read_bytes() == weights, where
    assert not list(out.rglob(".*")), where
    shutil.rmtree(out)
    return ended.code == 2


def check_resume(watched: Watched, stopped: Path, out: Path, weights: bytes, at: int, error: int, lasting: bool) -> int:
    """Returns whether the run ended with an error."""
    shutil.copytree(stopped, out)
    ended, _ = watched.train(out, steps=STEPS, at=at, error=error, lasting=lasting, resume=True, reads=True)
    where = (at, errno.errorcode[error], lasting, ended)
    assert ended.code == 0 or ended.is_one_sentence, where
    if ended.code == 2:
        again = train(out, STEPS, resume=True)
        assert again.code == 0, (where, again)
    assert (out / "weights.safetensors").read_bytes() == weights, where
    assert not list(out.rglob(".*")), where
    shutil.rmtree(out)
    return ended.code == 2


def test_a_few_operations_fail(
    watched: Watched, root: Path, whole: tuple[bytes, int], stopped: tuple[Path, int]
) -> None:
    weights, count = whole
    for number in range(8):
        check_start(watched, root / "run", weights, count * (2 * number + 1) // 16, *FAULTS[number % 4])
    folder, count = stopped
    for number in range(4):
        check_resume(watched, folder, root / "run", weights, count * (2 * number + 1) // 8, *FAULTS[number])


@pytest.mark.slow
@pytest.mark.parametrize("fault", [0, 1])
def test_every_operation_fails(fault: int, watched: Watched, root: Path, whole: tuple[bytes, int]) -> None:
    weights, count = whole
    ended = [check_start(watched, root / "run", weights, at, *FAULTS[fault]) for at in range(count)]
    assert sum(ended) > count / 2


@pytest.mark.slow
@pytest.mark.parametrize("fault", [0, 1])
def test_every_operation_of_a_resumed_run_fails(
    fault: int, watched: Watched, root: Path, whole: tuple[bytes, int], stopped: tuple[Path, int]
) -> None:
    folder, count = stopped
    ended = [check_resume(watched, folder, root / "run", whole[0], at, *FAULTS[fault]) for at in range(count)]
    assert sum(ended) > count / 2
